"""A home directory below which libraries can create nothing, for root too, who ignores the modes of directories."""

from pathlib import Path

NAMES = (".cache", ".config/matplotlib", ".config/wandb", ".local", ".nv", ".ray", ".triton")


def make_closed_home(path: Path) -> Path:
    """Make the directory, with a file in place of each directory that libraries make there."""
    (path / ".config").mkdir(parents=True)
    for name in NAMES:
        (path / name).touch()
    (path / ".config").chmod(0o555)
    path.chmod(0o555)
    return path


def is_unchanged(path: Path) -> bool:
    """Whether the directory has what `make_closed_home` made, and nothing else."""
    found = {one.relative_to(path).as_posix() for one in path.rglob("*")}
    return found == {".config", *NAMES} and not any((path / name).stat().st_size for name in NAMES)
