"""Formats of released weights. To add one: a module beside `bf16.py` and a line in `QUANTIZERS`."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.errors import ConfigError, pick
from srpo_core.quantizers import bf16, fp8, fp16, gguf
from srpo_core.quantizers.conversion import Format, Loss, WrittenFile, convert, num_weights
from srpo_core.quantizers.flux_checkpoint import FluxCheckpoint
from srpo_core.quantizers.lora import LORA_FORMAT, carry_lora
from srpo_core.quantizers.opening import open_flux
from srpo_core.quantizers.reading import read_directory, read_file

__all__ = [
    "LORA_FORMAT",
    "QUANTIZERS",
    "REFERENCE",
    "FluxCheckpoint",
    "Format",
    "Loss",
    "WrittenFile",
    "carry_lora",
    "chosen_quantizers",
    "convert",
    "num_weights",
    "open_flux",
    "read_directory",
    "read_file",
    "released_formats",
]

# The format that a release's pipeline loads, and whose images the other formats are compared with.
REFERENCE: Final = "bf16"

QUANTIZERS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        "bf16": bf16.FORMAT,
        "bf16_single": bf16.SINGLE,
        "fp16": fp16.FORMAT,
        "fp8_e4m3fn": fp8.PLAIN,
        "fp8_e4m3fn_scaled": fp8.SCALED,
        "gguf_f16": gguf.GGUF_F16,
        "gguf_bf16": gguf.GGUF_BF16,
        "q8_0": gguf.Q8_0,
        "q6_k": gguf.Q6_K,
        "q5_k_m": gguf.Q5_K_M,
        "q5_0": gguf.Q5_0,
        "q4_k_m": gguf.Q4_K_M,
        "q4_0": gguf.Q4_0,
    }
)


def chosen_quantizers(names: Iterable[str]) -> dict[str, tuple[str, Format]]:
    """Look up formats: by registry name, (the name as given, its entry). Case is ignored.

    Raises:
        ConfigError: a format is unknown, or named twice.
    """
    chosen: dict[str, tuple[str, Format]] = {}
    for given in names:
        name = given.lower()
        if name in chosen:
            raise ConfigError(f"format {name} is named twice: as {chosen[name][0]!r} and {given!r}")
        chosen[name] = (given, pick(QUANTIZERS, name, "quantizer"))
    return chosen


def released_formats(names: Iterable[str]) -> dict[str, tuple[str, Format]]:
    """Look up the formats of a release; returns them as `chosen_quantizers` does.

    Raises:
        ConfigError: a format is unknown or named twice, or the reference format is missing.
    """
    chosen = chosen_quantizers(names)
    if REFERENCE not in chosen:
        raise ConfigError(f"quantize.formats lacks {REFERENCE}, which the others are compared with: add it")
    return chosen
