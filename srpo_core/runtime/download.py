"""Download a file in blocks: resume an interrupted download, verify the SHA-256, and replace the target atomically."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from srpo_core.artifacts import sha256

PART_SUFFIX: Final = ".part"
BLOCK: Final = 1 << 20


def download(read: Callable[[int], Iterable[bytes]], target: Path, digest: str) -> bool:
    """Bring one file to `target`; return False, and leave nothing, if its bytes do not have the digest.

    An interrupted download leaves `<target>.part`. The next one reads only the rest; if the result does not have the
    digest, because the part is not the beginning of this file, it starts again from byte 0. A target that already
    has the digest is not read again. Two processes must not download to the same target at the same time.

    read: returns the bytes of the source from a byte offset to the end, in blocks.
    digest: SHA-256 of the whole file, as 64 hex digits.
    """
    if target.is_file() and sha256(target) == digest:
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + PART_SUFFIX)
    size = part.stat().st_size if part.is_file() else 0
    for start in dict.fromkeys((size, 0)):
        if _append(read, part, start) == digest:
            part.replace(target)
            return True
    part.unlink()
    return False


def _append(read: Callable[[int], Iterable[bytes]], part: Path, start: int) -> str:
    """Write the source from byte `start` on behind the first `start` bytes of `part`; return the digest of all."""
    seen = hashlib.sha256()
    with part.open("r+b" if start else "wb") as file:
        while start and (block := file.read(BLOCK)):
            seen.update(block)
        for block in read(start):
            seen.update(block)
            file.write(block)
    return seen.hexdigest()
