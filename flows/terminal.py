"""Flows run from a terminal, as `srpo align` and `srpo data` do: progress shown, the result returned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from flows.environment import prepare_environment

if TYPE_CHECKING:
    from flows.align import AlignResult


def run_align(
    *, profile: str | None, patch: Mapping[str, Any], revision: str | None, publish: bool
) -> "AlignResult":
    """Run the flow `align` here and show it; returns what it came to, also when the gate refused.

    Raises:
        SrpoError: a setting is wrong, a stage failed, or publishing did.
    """
    _prepare()
    from flows.align import align
    from flows.form import parse_patch

    form = parse_patch(patch)
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


def _prepare() -> None:
    prepare_environment()
    from rich.console import Console

    from flows.display import show_on_terminal

    show_on_terminal(Console(stderr=True, highlight=False))
