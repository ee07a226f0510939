"""Check the git checkout: whether a run can have a workspace of it, and what that workspace will lack."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from srpo_core.config import PARAMS_FILE, Settings, profile_names, profile_path, read_values
from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import SrpoError
from srpo_core.runtime.dvc_yaml import DVC_FILE, read_stages
from srpo_core.weights.models_lock import LOCK, read_lock
from srpo_core.workspace.checkout import require_checkout
from srpo_core.workspace.git import git, list_names, try_git
from srpo_core.workspace.inputs import unreachable_inputs
from srpo_core.workspace.snapshot import find_untracked

_OLDEST_GIT: Final = (2, 31)  # the first with `rev-parse --path-format`
_DVC_LOCK: Final = Path("dvc.lock")


def check_checkout(settings: Settings | None) -> Iterator[tuple[bool, str]]:
    """Yield a finding for the checkout, its line endings, its YAML files, and each input that a run cannot see.

    settings: they name the inputs; None checks no input.
    """
    here = Path.cwd()
    try:
        top = require_checkout(here)
        _require_recent_git(here)
        left_out = find_untracked(top).describe()
        yield True, f"{describe(top)}{'; ' if left_out else ''}{left_out}"
        yield from _line_endings(top)
    except SrpoError as error:  # a damaged index is found by the first command that reads it
        yield False, str(error)
    yield from _yaml_files()
    for line in unreachable_inputs(here, settings) if settings else ():
        yield False, line


def describe(checkout: Path) -> str:
    """Name a checkout and what kind it is."""
    branch = try_git(checkout, "symbolic-ref", "--quiet", "--short", "HEAD")
    kinds = [f"branch {branch.strip()}" if branch else "no branch (detached HEAD)"]
    if git(checkout, "rev-parse", "--is-shallow-repository") == "true":
        kinds.append("shallow clone")
    if git(checkout, "rev-parse", "--show-superproject-working-tree"):
        kinds.append("submodule")
    elif (checkout / ".git").is_file():
        kinds.append("git worktree")
    return f"{checkout}: {', '.join(kinds)}"


def _require_recent_git(here: Path) -> None:
    found = re.search(r"(\d+)\.(\d+)", git(here, "--version"))
    if found and tuple(map(int, found.groups())) < _OLDEST_GIT:
        oldest = ".".join(map(str, _OLDEST_GIT))
        raise SrpoError(f"git {found[0]} is too old: a run needs git {oldest} or newer")


def _line_endings(top: Path) -> Iterator[tuple[bool, str]]:
    """Yield a finding if tracked text has CRLF here and LF in git, as in a clone made before .gitattributes."""
    listed = list_names(top, "ls-files", "--eol", "-z")
    wrong = [entry.partition("\t")[2] for entry in listed if entry.startswith("i/lf") and "w/crlf" in entry]
    if wrong:
        yield (
            False,
            f"{len(wrong)} files have CRLF line endings here and LF in git, first {wrong[0]}, so DVC finds them changed: "
            "clone again, or, without uncommitted changes, 'git rm -rq --cached .' and 'git reset -q --hard'",
        )


def _yaml_files() -> Iterator[tuple[bool, str]]:
    """Yield a finding for each YAML file of the project that is refused."""
    reads: list[tuple[Callable[[Path], Any], Path]] = [
        (lambda path: read_stages(path.parent), DVC_FILE),
        (read_yaml, _DVC_LOCK),
        (read_lock, LOCK),
        (read_values, PARAMS_FILE),
        *((read_values, profile_path(name)) for name in profile_names()),
        *((read_yaml, path) for path in sorted(Path().glob("data/*.dvc"))),
    ]
    for read, path in reads:
        if path.exists():
            try:
                read(path)
            except SrpoError as error:
                yield False, str(error)
