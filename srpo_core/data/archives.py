"""Members of tars, whoever made them: a damaged archive is named in one line."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from srpo_core.errors import DataError

# what tarfile raises on damaged headers, besides its own errors; a name that is no UTF-8 is a ValueError
ARCHIVE_DAMAGE: Final = (
    tarfile.TarError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RecursionError,
)
SHOWN_REASON: Final = 400  # characters
_READ_AT_ONCE: Final = 1 << 20  # bytes


def tar_members(where: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar that is open at its start, without all of them in memory.

    where: the archive's path, for messages.

    Raises:
        DataError: the file is not a tar, is truncated, has a damaged header, or does not end as a tar does.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all, a kilobyte each
                yield member
            require_end(archive, where)
    except ARCHIVE_DAMAGE as error:
        reason = " ".join(str(error).split())[:SHOWN_REASON] or type(error).__name__
        raise DataError(f"{where}: not a readable tar archive: {reason}") from None


def require_end(archive: tarfile.TarFile, where: Path) -> None:
    """Require that an archive whose members were all read ends there, in blocks of zeros to the end of the file.

    tarfile takes a damaged header, the end of a file that was cut between two members, and the first of two archives in
    one file for the end. where: the path to name; only a gzip file proves by its checksum that it was not cut.

    Raises:
        tarfile.ReadError: there is something else.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    end = file.read(tarfile.BLOCKSIZE)
    if end.strip(b"\0"):
        raise tarfile.ReadError(f"a damaged or cut header at byte {archive.offset}")
    if not end and where.suffix != ".gz":
        raise tarfile.ReadError(
            f"the file ends at byte {archive.offset} without the blocks of zeros that end an archive, so it was cut "
            "between two members, or its writer did not close it: download it again, or, if you know that it is "
            f"complete, add them: truncate -s +1024 {where.name}"
        )
    while rest := file.read(_READ_AT_ONCE):
        if rest.strip(b"\0"):
            raise tarfile.ReadError(
                f"more data behind the end of the archive at byte {archive.offset}: pack all members in one archive"
            )
