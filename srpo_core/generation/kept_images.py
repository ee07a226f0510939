"""Images that later runs reuse: those of the base and of the champion, which no training changes.

An entry is the pixels of one batch. Its file is named by a hash of everything that determines them: the weights that the
model loads, prompts with their embeddings and seeds, sampler settings and precision, the kind of device, the code that
generates, and the versions of its libraries. Metrics and scorers are not among them: every run measures the pixels itself.

Entries are written atomically and read as a whole, so any number of processes may use the directory, and be killed,
without a lock; two that miss the same entry at once generate it twice. An entry begins with the SHA-256 of the rest. The
least recently used entries are removed when all together exceed the limit.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import srpo_core
from srpo_core.generation.images import ImageSet
from srpo_core.runtime.shared_files import PARTIAL, Location

PIXELS: Final = "pixels"
GIGABYTE: Final = 1e9
# The code that determines pixels: what `images.py` and `models` import, except the scorers, which measure them, and
# what changes no result. tests/generation/test_kept_images.py compares it with the imports.
CODE: Final = ("generation/images.py", "models", "protocols.py", "randomness.py", "weights")
LIBRARIES: Final = ("torch", "diffusers", "transformers", "peft", "numpy")
BEING_WRITTEN: Final = 3600.0  # seconds; a file in part that is older was left by a killed process

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptImages:
    """The kept images of one model.

    place: the directory of all entries; source: hash of weights and settings, see `source`; max_bytes: of all entries.
    """

    place: Location
    source: str
    max_bytes: float

    def read(self, part: ImageSet, device: torch.device) -> Tensor | None:
        """Return the pixels of a batch, (P, 3, H, W) in 8 bits; None if they are not kept, or damaged."""
        from safetensors.torch import load

        file = self._file(part, device)
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
        pixels: Tensor = load(data)[PIXELS]
        return pixels

    def write(self, part: ImageSet, device: torch.device, pixels: Tensor) -> None:
        """Keep the pixels of a batch, and remove the entries that were not used for the longest time beyond the limit."""
        from safetensors.torch import save

        data = save({PIXELS: pixels})
        self._file(part, device).write(hashlib.sha256(data).digest() + data)
        if self.place.path is not None:
            remove_oldest(self.place.path, self.max_bytes)

    def _file(self, part: ImageSet, device: torch.device) -> Location:
        described = [part.purpose, list(part.prompts), part.seeds_per_prompt, part.seed, _computed_by(device)]
        digest = hashlib.sha256(json.dumps([self.source, described]).encode())
        for name, tensor in sorted(part.condition.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return self.place / f"{digest.hexdigest()[:32]}.images"


def source_of(weights: Iterable[str], settings: Any) -> str:
    """Hash what all images of a model have in common: digests of its files, settings, and the code that generates."""
    return hashlib.sha256(json.dumps([sorted(weights), settings, code_digest()]).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Hash the code that determines pixels, and the versions of its libraries."""
    root = Path(srpo_core.__file__).parent
    digest = hashlib.sha256(json.dumps([version(library) for library in LIBRARIES]).encode())
    for entry in CODE:
        for file in sorted((root / entry).rglob("*.py")) if (root / entry).is_dir() else [root / entry]:
            digest.update(str(file.relative_to(root)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


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


def _computed_by(device: torch.device) -> list[Any]:
    """Describe what rounding depends on: the device, and on the CPU its instructions and the number of threads."""
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda, precision]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), precision]
