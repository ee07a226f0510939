"""The parts of a hash that names what later runs reuse: weights, embeddings, code, libraries and device."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

import srpo_core
from srpo_core.config import ModelSettings
from srpo_core.models import files_to_load
from srpo_core.protocols import Condition
from srpo_core.runtime.digests import known_digest

CODE_OF_MODELS: Final = ("models", "protocols.py", "randomness.py", "weights")
LIBRARIES: Final = ("torch", "diffusers", "transformers", "peft", "numpy")


def weights_of(model: ModelSettings, transformer: Path | None = None) -> list[str]:
    """List name and digest of each file that a model loads, wherever it is stored."""
    root = Path(model.path)
    lines = []
    for file in files_to_load(model, transformer):
        own = transformer is not None and file.is_relative_to(transformer)
        name = f"own/{file.relative_to(transformer)}" if own and transformer else file.relative_to(root)
        lines.append(f"{name} {known_digest(file)}\n")
    return lines


def hash_condition(digest: Any, condition: Condition) -> None:
    """Add embeddings of prompts to a digest of hashlib."""
    for name, tensor in sorted(condition.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)


def source_of(weights: Iterable[str], settings: Any, code: Sequence[str]) -> str:
    """Hash what all images of a model have in common: digests of its files, settings, and the code that generates."""
    described = [sorted(weights), settings, code_digest(tuple(code))]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


@cache
def code_digest(code: tuple[str, ...]) -> str:
    """Hash the code that determines images, files and packages of srpo_core, and the versions of its libraries."""
    root = Path(srpo_core.__file__).parent
    digest = hashlib.sha256(json.dumps([version(library) for library in LIBRARIES]).encode())
    for entry in code:
        for file in sorted((root / entry).rglob("*.py")) if (root / entry).is_dir() else [root / entry]:
            digest.update(str(file.relative_to(root)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def computed_by(device: torch.device) -> list[Any]:
    """Describe what rounding depends on: the device, and on the CPU its instructions and the number of threads."""
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda, precision]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), precision]
