"""The directory in which a store on disk writes what it will rename into place."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from srpo_core.runtime.file_lock import acquire, try_acquire


@dataclass(frozen=True)
class Incoming:
    """A directory of files being written, and its lock.

    Publishers hold a shared lock, which the kernel releases when they die. A process that gets the lock exclusively is the
    only one, so what it finds in the directory was left by killed publishers.
    """

    directory: Path
    lock: Path

    @contextmanager
    def new_directory(self) -> Iterator[Path]:
        """Create a directory to write to; it is removed afterwards unless it was renamed.

        What killed publishers left is removed first.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if lock := try_acquire(self.lock):
            with lock:
                for path in self.directory.iterdir():
                    shutil.rmtree(path, ignore_errors=True)
        with acquire(self.lock, shared=True):
            partial = self.directory / uuid4().hex
            try:
                partial.mkdir()
                yield partial
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def left(self, *, delete: bool) -> list[Path]:
        """List what killed publishers left, and delete it if asked to; nothing while another publisher is active."""
        if not self.directory.is_dir():
            return []
        lock = try_acquire(self.lock)
        if lock is None:
            return []
        with lock:
            found = sorted(self.directory.iterdir())
            for path in found if delete else ():
                shutil.rmtree(path)
            return found


def restore(hidden: Path, directory: Path) -> None:
    """Move a version that was hidden back, unless it was published again meanwhile, with the same content."""
    try:
        hidden.rename(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
