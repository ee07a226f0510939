"""Formats of released weights. To add one: a module beside `bf16.py` and a line in `QUANTIZERS`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from srpo_core.errors import ConfigError, pick
from srpo_core.quantizers.bf16 import write_bf16
from srpo_core.quantizers.checkpoint_files import WEIGHTS, CastLoss, read_by_diffusers, read_state_dict
from srpo_core.quantizers.fp8 import write_fp8_e4m3fn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QUANTIZERS", "WEIGHTS", "CastLoss", "Quantizer", "chosen_quantizers"]


@dataclass(frozen=True)
class Quantizer:
    """One entry of the registry `quantizers`.

    write: from a diffusers transformer directory to a directory of this format (config.json and weights).
    read: the weights of such a directory by name, opened again the way a user opens them.
    """

    write: Callable[[Path, Path], CastLoss]
    read: Callable[[Path], Mapping[str, "Tensor"]]


QUANTIZERS: Final[Mapping[str, Quantizer]] = MappingProxyType(
    {
        "bf16": Quantizer(write_bf16, read_by_diffusers),
        "fp8_e4m3fn": Quantizer(write_fp8_e4m3fn, read_state_dict),
    }
)


def chosen_quantizers(names: Iterable[str]) -> dict[str, tuple[str, Quantizer]]:
    """From the registry's name of each format to (the name as given, its entry); letter case is ignored.

    Raises:
        ConfigError: a format is unknown, or named twice.
    """
    chosen: dict[str, tuple[str, Quantizer]] = {}
    for given in names:
        name = given.lower()
        if name in chosen:
            raise ConfigError(f"quantize.formats names {name} twice: as {chosen[name][0]!r} and {given!r}")
        chosen[name] = (given, pick(QUANTIZERS, name, "quantizer"))
    return chosen
