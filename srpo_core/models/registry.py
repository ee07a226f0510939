"""The registry of base models."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.config import ModelSettings
from srpo_core.errors import ConfigError, pick
from srpo_core.models.architecture import BaseEntry
from srpo_core.models.flux import FLUX

BASES: Final[Mapping[str, BaseEntry]] = MappingProxyType({"flux": FLUX})


def base_entry(settings: ModelSettings) -> BaseEntry:
    """Return the registry entry of the settings' base model. Raises `ConfigError` if there is none."""
    return pick(BASES, settings.base, "base model")


def require_release_formats(settings: ModelSettings) -> None:
    """Raise `ConfigError` unless checkpoints of the settings' base model can be written in release formats."""
    if not base_entry(settings).release_formats:
        known = ", ".join(name for name, entry in BASES.items() if entry.release_formats)
        raise ConfigError(
            f"release formats are not available for base model {settings.base!r}: known are those of {known}"
        )
