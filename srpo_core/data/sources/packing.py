"""Copy files of a data set into few large ones: DVC loses files of large trees (treeverse/dvc #10977)."""

import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path

from srpo_core.data.image_names import is_metadata
from srpo_core.data.images import find_images
from srpo_core.data.sources.rows import IMAGE_SUFFIXES, SUFFIXES, is_hidden
from srpo_core.data.sources.table_images import PACKED
from srpo_core.errors import DataError


def copy_images(source: Path, split: str, target: Path) -> None:
    """Copy the images of a split to a directory: an archive unchanged, a directory as one tar.

    Raises:
        DataError: the source has no images of the split, or has them twice.
    """
    found = find_images(source, split)
    if found.is_dir():
        pack(found, target / f"{split}.tar")
    else:
        shutil.copyfile(found, target / found.name)


def copy_tables(source: Path, target: Path, *, with_images: bool) -> None:
    """Copy the tables of a source and, as one tar, the images and captions that lie beside them.

    Raises:
        DataError: the source has no file.
    """
    if source.is_file():
        shutil.copyfile(source, target / source.name)
        return
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not is_hidden(path.relative_to(source).as_posix())
    ]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    beside = {path.with_suffix(".txt") for path in images}
    packed = [path for path in files if path in {*images, *beside}] if with_images else []
    for path in files:
        if path.suffix in SUFFIXES and path not in beside:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    if packed:
        pack(source, target / PACKED, packed)
    if not any(target.iterdir()):
        raise DataError(f"{source}: has neither a table ({', '.join(sorted(SUFFIXES))}) nor images")


def pack(directory: Path, archive: Path, files: Iterable[Path] | None = None) -> None:
    """Write files below a directory as a tar of sorted members without times or owners: the same files, the same bytes.

    files: which ones; by default all.
    """
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(
            path for path in files or directory.rglob("*") if path.is_file() and not is_metadata(path.name)
        ):
            member = tarfile.TarInfo(str(path.relative_to(directory)))
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)
