"""Copy files of a data set into few large ones: DVC loses files of large trees (treeverse/dvc #10977)."""

import logging
import shutil
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from srpo_core.data.image_names import is_metadata
from srpo_core.data.images import find_images
from srpo_core.data.sources.beside import caption_of, images_among, named_files
from srpo_core.data.sources.rows import SUFFIXES, visible_files
from srpo_core.data.sources.table_images import PACKED
from srpo_core.errors import DataError

_log = logging.getLogger(__name__)


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

    Images are the files that a cell of a table names, and in a directory those with the suffix of an image.

    Raises:
        DataError: the source has no table and no image, or has images beside `images.tar`.
    """
    root = source if source.is_dir() else source.parent
    files = [source] if source.is_file() else visible_files(source)
    images, captions = _images_and_captions(source, files)
    tables = [path for path in files if path.suffix in SUFFIXES and path not in captions]
    packed = set().union(images, captions, named_files(source).difference(tables)) if with_images else set()
    if not tables and not packed:
        raise DataError(f"{source}: has neither a table ({', '.join(sorted(SUFFIXES))}) nor images")
    if packed and root / PACKED in tables:
        first = min(packed).relative_to(root)
        raise DataError(
            f"{source}: has {len(packed)} images and captions beside {PACKED}, first {first}: pack all of them, or "
            f"unpack {PACKED}"
        )
    if unread := sorted(set(files).difference(tables, packed)):
        first = unread[0].relative_to(root)
        _log.warning("%s: %d files are no part of the version, first %s", source, len(unread), first)
    for path in tables:
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    if packed:
        pack(root, target / PACKED, packed)


def _images_and_captions(source: Path, files: Sequence[Path]) -> tuple[set[Path], set[Path]]:
    """Return the images in a directory by their names, and the captions that lie beside them."""
    if source.is_file():
        return set(), set()
    images = images_among([path.relative_to(source).as_posix() for path in files])
    captions = {source / caption_of(name) for name in images}
    return {source / name for name in images}, captions.intersection(files)


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
