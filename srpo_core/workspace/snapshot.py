"""Record the checkout, with uncommitted and untracked files, as a tree in git: what a run's workspace is made from.

Weights and data do not belong in git's objects, where every run would add them again. So large untracked files and
repositories inside the checkout are left out; `inputs` links those that the settings name.
"""

import shutil
import stat
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from srpo_core.errors import SrpoError
from srpo_core.workspace.git import git, git_path, list_names

LARGE_BYTES: Final = (
    50_000_000  # of a file or of a directory: more than code has; hosts of git warn from here on
)
_MB: Final = 1e6
_SHOWN: Final = 3

_READABLE_BY_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH
_PRIVATE_UMASK: Final = 0o077


@dataclass(frozen=True)
class Untracked:
    """The untracked files of a checkout that git does not ignore, relative to its top.

    files: those that a snapshot contains. left_out: the other files and directories, each with the reason.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def describe(self) -> str:
        """Say in one line what is left out and what to do; empty if nothing is."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - _SHOWN
        rest = f" and {more} more" if more > 0 else ""
        return (
            f"left out of the run: {', '.join(self.left_out[:_SHOWN])}{rest}. Untracked files above "
            f"{LARGE_BYTES / _MB:.0f} MB and repositories in the checkout are not copied; a path that the settings name is "
            "linked. Add the others to .gitignore, or move them out of the checkout"
        )


def find_untracked(checkout: Path) -> Untracked:
    """List the untracked files of a checkout, without large ones and without those of repositories inside it."""
    listed = list_names(checkout, "ls-files", "--others", "--exclude-standard", "-z")
    left_out = [f"{name} (a git repository of its own)" for name in listed if name.endswith("/")]
    sizes = dict(_sizes(checkout, [name for name in listed if not name.endswith("/")]))
    left_out += [f"{name} ({size / _MB:,.0f} MB)" for name, size in sizes.items() if size > LARGE_BYTES]
    sizes = {name: size for name, size in sizes.items() if size <= LARGE_BYTES}
    for directory, inside in _by_directory(checkout, sizes).items():
        total = sum(sizes[name] for name in inside)
        if total > LARGE_BYTES:
            left_out.append(f"{directory} ({total / _MB:,.0f} MB in {len(inside)} files)")
            for name in inside:
                del sizes[name]
    return Untracked(tuple(sizes), tuple(left_out))


def checkout_snapshot(checkout: Path, untracked: Untracked | None = None) -> str:
    """Write the checkout, with uncommitted and untracked files, as a git tree, and return its id.

    The user's index and branch are unchanged: this works on a copy of the index. What only the user can read in the
    checkout, others cannot read in git's objects either. untracked: what `find_untracked` has found.
    """
    untracked = untracked or find_untracked(checkout)
    _write_private_objects(checkout, untracked)
    with tempfile.TemporaryDirectory(prefix="srpo-index-") as scratch:
        index = Path(scratch) / "index"
        _copy_index(checkout, index)
        environment = {"GIT_INDEX_FILE": str(index)}
        git(checkout, "add", "--update", ".", environment=environment)
        names = "".join(f"{name}\0" for name in untracked.files)
        # --remove: for a file that has disappeared since it was listed
        git(
            checkout,
            "update-index",
            "--add",
            "--remove",
            "-z",
            "--stdin",
            environment=environment,
            given=names,
        )
        return git(checkout, "write-tree", environment=environment)


def keep_modes(checkout: Path, workspace: Path, untracked: Untracked) -> None:
    """Give the private files of a checkout the same mode in its workspace; git records only whether one is executable."""
    for file in _private_files(checkout, untracked):
        copy = workspace / file.relative_to(checkout)
        if copy.is_file() and not copy.is_symlink():
            copy.chmod(stat.S_IMODE(file.stat().st_mode))


def _path_of_git(checkout: Path, name: str) -> Path:
    return git_path(checkout, "rev-parse", "--path-format=absolute", "--git-path", name)


def _copy_index(checkout: Path, target: Path) -> None:
    """Copy the user's index; there is none in a checkout to which nothing was added yet."""
    index = _path_of_git(checkout, "index")
    try:
        shutil.copy2(index, target)
    except FileNotFoundError:
        if list_names(checkout, "ls-files", "--cached", "-z"):
            raise SrpoError(
                f"{index} is not there, though git lists files of that index: repeat the command; if that does not help, "
                "use another clone"
            ) from None


def _sizes(checkout: Path, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for name in names:
        with suppress(FileNotFoundError):  # removed since it was listed
            yield name, (checkout / name).lstat().st_size


def _by_directory(checkout: Path, files: dict[str, int]) -> dict[str, list[str]]:
    """Group the untracked files that are in directories without tracked ones, by the topmost such directory."""
    listed = list_names(checkout, "ls-files", "--others", "--exclude-standard", "--directory", "-z")
    topmost = {name for name in listed if name.endswith("/")}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in files:
        for parent in PurePosixPath(name).parents:
            if f"{parent}/" in topmost:
                groups[f"{parent}/"].append(name)
                break
    return groups


def _private_files(checkout: Path, untracked: Untracked) -> list[Path]:
    """Return the changed and untracked files of a checkout that others cannot read."""
    changed = list_names(checkout, "ls-files", "--modified", "-z")
    files = [checkout / name for name in {*changed, *untracked.files}]
    return [
        file
        for file in sorted(files)
        if file.is_file() and not file.is_symlink() and not file.stat().st_mode & _READABLE_BY_OTHERS
    ]


def _write_private_objects(checkout: Path, untracked: Untracked) -> None:
    """Write the objects of private files with a mode to match, before `git add` would write them for everybody."""
    objects = _path_of_git(checkout, "objects")
    for file in _private_files(checkout, untracked):
        name = git(checkout, "hash-object", "-w", "--", str(file), umask=_PRIVATE_UMASK)
        stored = objects / name[:2] / name[2:]
        if stored.exists():  # else it is in a pack, because it was committed
            stored.chmod(stat.S_IRUSR)
            stored.parent.chmod(stat.S_IMODE(objects.stat().st_mode))
