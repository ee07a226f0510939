"""Decode the images of a data set on several cores, in order and with bounded memory.

Threads suffice: Pillow releases the interpreter's lock while it decodes, and hashlib while it hashes.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from srpo_core.data.decoding import read_image
from srpo_core.data.images import ImageSource
from srpo_core.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_AT_ONCE: Final = 8  # images per task of a thread; for small images a task costs as much as decoding one
_DIGEST_BYTES: Final = 16  # enough to tell 430,000 images apart
_TASKS_PER_WORKER: Final = 2  # one that runs, and one that waits


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image that was decoded completely.

    size: width and height in pixels, as people see them; None if it cannot be decoded. problem: then the reason.
    digest: the first 16 bytes of the SHA-256 of the file. is_empty: whether the file has no byte, or a cell no image.
    """

    name: str
    size: tuple[int, int] | None
    digest: bytes
    problem: str = ""
    is_empty: bool = False


def decode_images(stored: ImageSource, names: Iterable[str], *, workers: int) -> Iterator[DecodedImage]:
    """Decode images on `workers` threads; yield what is known of each, in the order of the names.

    At most `workers` decoded images are in memory at once, and the files of some that wait. The number of workers does
    not change the result.

    Raises:
        DataError: the file of an image cannot be read.
    """
    waiting: deque[Future[list[DecodedImage]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
        try:
            rest = iter(names)
            # read here, in order: tables are read forward
            while some := [(name, stored.read(name)) for name in islice(rest, _AT_ONCE)]:
                waiting.append(threads.submit(_decode, some))
                if len(waiting) >= _TASKS_PER_WORKER * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for task in waiting:  # after an error, or if nobody asks for more
                task.cancel()


def read_decoded(stored: ImageSource, name: str) -> "Image.Image":
    """Read one image as people see it.

    Raises:
        DataError: it is not there, or cannot be read or decoded.
    """
    if name not in stored:
        raise DataError(f"{stored.where}: has no image {name!r}")
    try:
        return read_image(stored.read(name))
    except ValueError as error:
        raise DataError(f"{stored.where}: image {name!r} cannot be decoded: {error}") from None


def _decode(files: Iterable[tuple[str, bytes]]) -> list[DecodedImage]:
    return [_decode_one(name, content) for name, content in files]


def _decode_one(name: str, content: bytes) -> DecodedImage:
    digest = hashlib.sha256(content).digest()[:_DIGEST_BYTES]
    try:
        return DecodedImage(name, read_image(content).size, digest)
    except ValueError as error:
        return DecodedImage(name, None, digest, str(error), is_empty=not content)
