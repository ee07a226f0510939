"""Files that later runs reuse: images of the base and of the champion, and the base's pairs of noise and image.

A file's name is a hash of everything that determines its content. Files are written atomically and read as a whole, so any
number of processes may use the directory, and be killed, without a lock; two that miss the same file at once generate it
twice. A file begins with the SHA-256 of the rest. The least recently used files are removed when all together exceed the
limit.
"""

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from srpo_core.artifacts import home
from srpo_core.config import ResourceSettings
from srpo_core.runtime.shared_files import PARTIAL, Location, storage

GIGABYTE: Final = 1e9
BEING_WRITTEN: Final = 3600.0  # seconds; a file in part that is older was left by a killed process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptFiles:
    """A directory of files that later runs reuse. max_bytes: of all of them."""

    place: Location
    max_bytes: float

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it is not kept, or damaged."""
        file = self.place / name
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        digest, data = content[: hashlib.sha256().digest_size], content[hashlib.sha256().digest_size :]
        if hashlib.sha256(data).digest() != digest:
            log.warning("%s is damaged: its images are generated again", file)
            return None
        if file.path is not None:
            with suppress(FileNotFoundError):  # another process has removed it meanwhile
                os.utime(file.path)  # used last
        return data

    def write(self, files: Mapping[str, bytes]) -> None:
        """Keep files, by name, and remove those beyond the limit that were not used for the longest time."""
        for name, data in files.items():
            (self.place / name).write(hashlib.sha256(data).digest() + data)
        if self.place.path is not None:
            remove_oldest(self.place.path, self.max_bytes)


def kept_files(resources: ResourceSettings) -> KeptFiles | None:
    """Return the directory of all runs that share a home directory or SRPO_SHARED; None if the limit is 0."""
    if not resources.kept_images_gb:
        return None
    place = (storage() or Location.of(home())) / "images"
    return KeptFiles(place, resources.kept_images_gb * GIGABYTE)


def remove_oldest(directory: Path, max_bytes: float) -> None:
    """Remove the files of a directory that were not used for the longest time, until the rest fits into `max_bytes`.

    What a killed process has written in part is among them, and what another process is writing is not.
    """
    found = []
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another process removes entries too
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    total = sum(size for _, size, _ in found)
    now = time.time()
    for written, size, path in sorted(found):
        if total <= max_bytes:
            return
        if path.suffix == PARTIAL and now - written < BEING_WRITTEN:
            continue
        path.unlink(missing_ok=True)
        total -= size
