"""Locks on files between processes, by flock(2).

The kernel releases a lock when its process ends, however it ends, so a lock is never stale. A waiting process sleeps
in the kernel and does not poll.

The library `filelock` does not replace this module: its `FileLock` is exclusive only, and its `ReadWriteLock` (an
SQLite database) cannot turn a shared lock into an exclusive one, which the last reader of a copy needs.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Self


class FileLock:
    """A lock that is held: until `release`, the end of a `with` block, or the end of the process."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock. The lock file stays; releasing twice does nothing."""
        self._file.close()

    def try_upgrade(self) -> bool:
        """Turn a shared lock into an exclusive one; return False, and wait for nobody, if others share it.

        The kernel releases the shared lock first: after False this process may hold no lock any more.
        """
        return _flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove_file(self) -> None:
        """Delete the lock file. Only for the holder of an exclusive lock; waiting processes then lock a new file."""
        self._path.unlink(missing_ok=True)

    def fileno(self) -> int:
        """Return the descriptor, for a child process that holds the lock too: it is released when both have closed it."""
        return self._file.fileno()

    def write_holder(self) -> None:
        """Write this process's id into the lock file, for `read_holder`. Only for an exclusive lock."""
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()


def acquire(path: Path, *, shared: bool = False) -> FileLock:
    """Lock a file, created with its directory if missing, and wait until that is possible.

    shared: several processes may hold a shared lock at once, but none beside an exclusive one.
    """
    lock = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    assert lock is not None
    return lock


def try_acquire(path: Path, *, shared: bool = False) -> FileLock | None:
    """Lock a file as `acquire` does, but return None where that would have to wait."""
    return _acquire(path, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def is_held(path: Path) -> bool:
    """Whether a process holds a lock, exclusive or shared; a lock file that is missing is not made."""
    if not path.exists():
        return False
    lock = try_acquire(path)
    if lock is None:
        return True
    lock.release()
    return False


def read_holder(path: Path) -> str:
    """Return the process id that a holder wrote into a lock file; empty if it has not yet."""
    return path.read_text(encoding="ascii").strip()


def _acquire(path: Path, operation: int) -> FileLock | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open(
            "a+b"
        )  # NFS wants a file open for reading to share it, and for writing to lock it alone
        try:
            if not _flock(file, operation):
                file.close()
                return None
        except BaseException:
            file.close()
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return FileLock(path, file)
        file.close()  # the holder before removed the file while this process waited for it


def _flock(file: IO[bytes], operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    return True
