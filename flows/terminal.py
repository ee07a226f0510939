"""Flows run from a terminal, as `srpo align` and `srpo data` do: progress shown, the result returned."""

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from flows.environment import prepare_environment
from srpo_core.config import patched_settings
from srpo_core.preflight.consistency import require_consistent

if TYPE_CHECKING:
    from flows.align import AlignResult
    from srpo_core.release import Cleaning, Move


INTERRUPTED: Final = 128 + signal.SIGINT


def run_align(
    *, profile: str | None, patch: Mapping[str, Any], revision: str | None, publish: bool
) -> "AlignResult":
    """Run the flow `align` here and show it; returns what it came to, also when the gate refused.

    Raises:
        SrpoError: a setting is wrong, a stage failed, or publishing did.
    """
    _prepare()
    from flows.form import parse_patch

    form = parse_patch(patch)
    if revision is None:  # what is wrong is said before a server starts; the flow looks again, where it runs
        changes = form.model_dump(mode="json", exclude_none=True)
        require_consistent(patched_settings(Path.cwd(), profile=profile, patch=changes))
    from flows.align import align

    # called directly, a flow gives the data of the state that it returns
    return cast("AlignResult", align(profile=profile, patch=form, revision=revision, publish=publish))


def run_data(*, source: str, name: str) -> str:
    """Run the flow `data` here and show it; returns the tag of the version.

    Raises:
        SrpoError: the source breaks a rule, or the remote did not take all of it.
    """
    _prepare()
    from flows.data import data

    return data(source=source, name=name)


def run_promote(*, version: str, reason: str, override: bool) -> str:
    """Run the flow `promote` here; returns what moved, in one line.

    Raises:
        SrpoError: the gate refused the release, there is none, or another promoter was faster.
    """
    _prepare()
    from flows.release import promote

    return _moved(promote(version=version, reason=reason, override=override))


def run_rollback(*, model: str | None, reason: str) -> str:
    """Run the flow `rollback` here; returns what moved, in one line.

    Raises:
        SrpoError: there is nothing to roll back to, or another moved production meanwhile.
    """
    _prepare()
    from flows.release import rollback

    return _moved(rollback(model=model, reason=reason))


def run_clean(*, keep: int, delete: bool) -> "Cleaning":
    """Run the flow `clean` here; returns what was removed, or would be.

    Raises:
        SrpoError: the store cannot be read or written.
    """
    _prepare()
    from flows.release import clean

    return clean(keep=keep, delete=delete)


def _moved(move: "Move") -> str:
    if move.before == move.after:
        return f"{move.alias}  is {move.after} already: 'srpo show {move.after}' tells since when; 'srpo promote VERSION' moves it"
    return f"{move.alias}  {move.before or 'nothing'} → {move.after}"


def _end_at_once(*_: object) -> NoReturn:
    """End on Ctrl-C as after kill -9, which is safe at any moment; the stages' guardian ends what still runs.

    Prefect's own way out would print the traces of a server that the same Ctrl-C has ended.
    """
    # past Python's buffer, which the signal may have met half way through a write; stderr may be closed
    with suppress(OSError):
        os.write(2, b"\nsrpo: error: interrupted; the same command goes on from here\n")
    os._exit(INTERRUPTED)


def _prepare() -> None:
    signal.signal(signal.SIGINT, _end_at_once)
    prepare_environment()
    from rich.console import Console

    from flows.display import show_on_terminal

    show_on_terminal(Console(stderr=True, highlight=False))
