"""Copy files of a data set into few large ones: DVC loses files of large trees (treeverse/dvc #10977)."""

import shutil
import tarfile
from pathlib import Path

from srpo_core.data.image_names import is_metadata
from srpo_core.data.images import find_images


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


def pack(directory: Path, archive: Path) -> None:
    """Write the files below a directory as a tar of sorted members without times or owners: the same files, the same bytes."""
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(
            path for path in directory.rglob("*") if path.is_file() and not is_metadata(path.name)
        ):
            member = tarfile.TarInfo(str(path.relative_to(directory)))
            member.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(member, file)
