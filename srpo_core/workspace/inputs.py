"""The directories and files that the settings name, which a run's workspace must see as the checkout does.

The workspace has what git has. Data and weights are often elsewhere: ignored by git, too large for it, in a repository
of their own, or behind a relative link. Such an input is linked to the checkout's; a stage only reads it.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from srpo_core.config import Settings
from srpo_core.errors import ConfigError
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.workspace.git import git
from srpo_core.workspace.stage_graph import pointers
from srpo_core.workspace.worktree import Workspace

_NO_INPUT: Final = frozenset({".git", "__pycache__"})  # DVC hashes neither
_REMOTE: Final = "://"


def input_paths(settings: Settings) -> dict[str, str]:
    """Return the paths of data and weights that the settings name, by key."""
    ratings = {
        f"gate.ratings[{place}]": f"data/ratings/{entry.partition(':')[0]}.parquet"
        for place, entry in enumerate(settings.gate.ratings)
    }
    paths = {"ingest.source": settings.ingest.source, "model.path": settings.model.path}
    scorers = {
        **{f"rewards[{place}]": reward for place, reward in enumerate(settings.rewards)},
        "select_judge": settings.select_judge,
        "judge": settings.judge,
        **{f"evaluate.scorers.{name}": scorer for name, scorer in settings.evaluate.scorers.items()},
    }
    return paths | ratings | {f"{key}.path": scorer.path for key, scorer in scorers.items()}


def require_inputs(checkout: Path, settings: Settings, *, revision: str | None = None) -> None:
    """Check, before a run starts, that its workspace can see what the settings name.

    revision: of the run; what it lacks is known only in its workspace.

    Raises:
        ConfigError: a path leads nowhere or out of the checkout, or the data are missing.
    """
    for fault in unreachable_inputs(checkout, settings):
        raise ConfigError(fault)
    source, values = settings.ingest.source, settings.model_dump()
    is_read = any(Path(source) in stage.inputs(values) for stage in read_stages(checkout).values())
    is_here = _REMOTE in source or (checkout / source).exists() or _is_tracked(checkout, source)
    if revision is None and is_read and not is_here:
        raise ConfigError(
            f"ingest.source: {source} is missing: check the path, or make a version with 'srpo data'"
        )


def unreachable_inputs(checkout: Path, settings: Settings) -> Iterator[str]:
    """Yield a line for each path of the settings that a run's workspace could not see, with what to write instead."""
    for key, given in input_paths(settings).items():
        place = checkout / given
        if _REMOTE in given:
            continue
        if Path(os.path.normpath(given)).parts[:1] == ("..",):
            yield (
                f"{key}: {given} is outside the checkout, and a run has a directory of its own, from which that path "
                f"leads elsewhere: write {os.path.normpath(place)}"
            )
        elif given.startswith("~") and not place.exists():
            yield f"{key}: {given} begins with '~', which is not expanded here: write the whole path"
        elif place.is_symlink() and not place.exists():
            yield f"{key}: {given} is a link to {place.readlink()}, which does not exist: mend it, or give another path"


def link_inputs(workspace: Workspace, paths: Iterable[str], *, revision: str | None = None) -> list[str]:
    """Link what the settings name, the checkout has, and the workspace lacks; return the linked paths.

    paths: what `input_paths` returns, relative to the top of the checkout. revision: of the run; then files that are only
    in the checkout are not added to a directory of that revision. Data that DVC tracks are left to `dvc pull`.
    """
    linked: list[str] = []
    for given in dict.fromkeys(paths):
        path = Path(os.path.normpath(given))
        is_inside = not path.is_absolute() and path.parts[:1] not in ((), ("..",)) and _REMOTE not in given
        is_tracked = _is_tracked(workspace.path, str(path))
        if is_inside and not is_tracked and (workspace.checkout / path).exists():
            _Linker(workspace, linked, adds=revision is None).link(path)
    return linked


class _Linker:
    """Link what is missing at or below a path."""

    def __init__(self, workspace: Workspace, linked: list[str], *, adds: bool) -> None:
        self.workspace = workspace
        self.linked = linked
        self.adds = adds  # files to a directory that git brought

    def link(self, path: Path) -> None:
        """Link a path, or else the files below it; path: relative to the checkout."""
        for parent in [*reversed(path.parents)][1:]:
            if self._replaces_a_broken_link(parent):
                return
            if not (self.workspace.path / parent).exists():
                (self.workspace.path / parent).mkdir()
        if self._replaces_a_broken_link(path):
            return
        if not (self.workspace.path / path).exists():
            self._link(path)
        elif self.adds and (self.workspace.checkout / path).is_dir():
            self._link_files_below(path)

    def _link_files_below(self, path: Path) -> None:
        """Link files one by one: DVC does not follow a link to a directory below a stage's input."""
        for child in sorted((self.workspace.checkout / path).iterdir()):
            here = path / child.name
            if child.name in _NO_INPUT or self._replaces_a_broken_link(here):
                continue
            target = self.workspace.path / here
            if child.is_dir() and not child.is_symlink():
                target.mkdir(exist_ok=True)
                self._link_files_below(here)
            elif not target.exists() and child.exists():
                self._link(here)

    def _replaces_a_broken_link(self, path: Path) -> bool:
        """Whether git brought a link here that leads elsewhere than in the checkout, which is replaced."""
        target, source = self.workspace.path / path, self.workspace.checkout / path
        if not target.is_symlink() or not source.exists():
            return False
        leads = target.resolve()
        inside = leads.is_relative_to(self.workspace.path.resolve())
        if target.exists() and (inside or leads == source.resolve()):
            return False
        target.unlink()
        self._link(path)
        # git's record of the run stays that of the checkout
        git(self.workspace.path, "update-index", "--skip-worktree", "--", str(path))
        return True

    def _link(self, path: Path) -> None:
        (self.workspace.path / path).symlink_to((self.workspace.checkout / path).resolve())
        self.linked.append(str(path))


def _is_tracked(root: Path, given: str) -> bool:
    """Whether DVC tracks a path or a directory above it, so that `dvc pull` brings it."""
    return any((root / pointer).is_file() for pointer in pointers(Path(given)))
