"""SHA-256 of large files, computed once per machine: FLUX.1-dev's weights take half a minute to read.

A digest is recorded below SRPO_HOME with what changes when its file does: device, inode, size, modification time and
the time of the last change, which no program can set. It counts only while all of these are the same. A file that was
changed in the last seconds before it was read is not recorded, because another change could leave the same times
(git calls such an entry racy).

`known_digest` is for names: of resume directories, of kept images, of files to copy. Damage by the disk itself changes
no time, so a check of a file against a published digest reads the bytes (`read_digest`).
"""

import hashlib
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import home, replacing, sha256

LEAST_BYTES: Final = 1 << 20  # a smaller file is read as fast as its record
SETTLED_NS: Final = 2_000_000_000  # some file systems store times in steps of two seconds


def known_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits, from its record if the file is unchanged; else see `read_digest`."""
    found = _identity(path)
    if found["size"] < LEAST_BYTES:
        return sha256(path)
    with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):  # a damaged record is replaced
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        if record | {"sha256": None} == found | {"sha256": None}:
            return str(record["sha256"])
    return read_digest(path)


def read_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, which are read, and record it for `known_digest`."""
    before, start = _identity(path), time.time_ns()
    digest = sha256(path)
    settled = start - max(before["mtime_ns"], before["ctime_ns"]) > SETTLED_NS
    if before["size"] >= LEAST_BYTES and settled and _identity(path) == before:
        _forget_removed_files()
        with replacing(_record(path)) as partial:
            partial.write_text(json.dumps(before | {"sha256": digest}), encoding="utf-8")
    return digest


def _identity(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {
        "path": str(path.resolve()),
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _record(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
    return home() / "digests" / f"{name}.json"


def _forget_removed_files() -> None:
    for record in (home() / "digests").glob("*.json"):
        with suppress(FileNotFoundError):  # another process may do the same
            try:
                gone = not Path(json.loads(record.read_text(encoding="utf-8"))["path"]).exists()
            except (ValueError, KeyError, TypeError):
                gone = True  # damaged
            if gone:
                record.unlink()
