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


def tar_members(where: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar that is open at its start, without all of them in memory.

    where: the archive's path, for messages.

    Raises:
        DataError: the file is not a tar, is truncated, or has a damaged header.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all, a kilobyte each
                yield member
            require_end(archive)
    except ARCHIVE_DAMAGE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{where}: not a readable tar archive: {reason}") from None


def require_end(archive: tarfile.TarFile) -> None:
    """Require that an archive whose members were all read ends there: tarfile takes any damaged header for its end.

    Raises:
        tarfile.ReadError: there is a header that it could not read.
    """
    file = archive.fileobj
    assert file is not None
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"a damaged or cut header at byte {archive.offset}")
