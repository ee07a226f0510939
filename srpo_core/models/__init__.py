"""Base models. To add one: a module beside `flux.py` and a line in `BASES`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from srpo_core.config import ModelSettings
from srpo_core.errors import pick
from srpo_core.models.flux import (
    encode_flux_images,
    encode_flux_prompts,
    load_flux,
    load_flux_transformer,
)
from srpo_core.protocols import BaseModel, Condition

if TYPE_CHECKING:
    from torch import Tensor


class PromptEncoder(Protocol):
    """Encodes prompts by the base's text encoders."""

    def __call__(self, settings: ModelSettings, prompts: Sequence[str], *, batch_size: int) -> Condition:
        """Encode prompts in the order given."""
        ...


@dataclass(frozen=True)
class BaseEntry:
    """One entry of the registry `bases`: how to load it, its transformer alone, and how to encode inputs."""

    load: Callable[[ModelSettings], BaseModel]
    load_transformer: Callable[[Path], Any]
    encode_prompts: PromptEncoder
    encode_images: "Callable[[ModelSettings, Iterable[Tensor]], Tensor]"


BASES: Final[Mapping[str, BaseEntry]] = MappingProxyType(
    {"flux": BaseEntry(load_flux, load_flux_transformer, encode_flux_prompts, encode_flux_images)}
)


def load_base(settings: ModelSettings) -> BaseModel:
    """Load the base model that the settings name. Raises `ConfigError` for an unknown one."""
    return pick(BASES, settings.base, "base model").load(settings)


def load_transformer(settings: ModelSettings, directory: Path) -> Any:
    """Load a transformer that training saved, in the class of the settings' base model."""
    return pick(BASES, settings.base, "base model").load_transformer(directory)


def encode_prompts(settings: ModelSettings, prompts: Sequence[str], *, batch_size: int) -> Condition:
    """Encode prompts by the text encoders of the settings' base model, in the order given."""
    return pick(BASES, settings.base, "base model").encode_prompts(settings, prompts, batch_size=batch_size)


def encode_images(settings: ModelSettings, batches: "Iterable[Tensor]") -> "Tensor":
    """Packed latents (N, S, C) of batches of images (B, 3, H, W) in [0, 1], by the VAE of the settings' base model."""
    return pick(BASES, settings.base, "base model").encode_images(settings, batches)
