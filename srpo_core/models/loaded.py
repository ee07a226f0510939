"""Base models for generation: loaded for one model, or once for one model after the other."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

from srpo_core.config import GenerateSettings, ModelSettings
from srpo_core.errors import ArtifactError
from srpo_core.models import loading
from srpo_core.models.base import Base
from srpo_core.models.lora import put_on_adapters, take_off_adapters
from srpo_core.models.offloading import free_pinned_memory
from srpo_core.models.registry import base_entry
from srpo_core.models.sharding import read_base_weights
from srpo_core.protocols import BaseModel
from srpo_core.runtime.progress import reporting
from srpo_core.weights.adapters import adapters_file

if TYPE_CHECKING:
    import torch


def load_base(
    settings: ModelSettings, transformer: Path | None = None, *, generate: GenerateSettings | None = None
) -> Base:
    """Load the base model for generation, with its own weights or a directory's; no parameter requires a gradient.

    transformer: a directory of weights, or of adapters, which are put on the base; generate: the settings of the images,
    for which matrices are held in bfloat16 under autocast; None holds all weights in float32 and decodes whole batches.

    Raises:
        ConfigError: there is no such base model.
        ArtifactError: a file is missing or damaged.
    """
    adapters = None if transformer is None else adapters_file(transformer)
    model = _load(settings, None if adapters else transformer, generate)
    if adapters is not None:
        put_on_adapters(model.transformer, adapters)
    return model


class LoadedBase:
    """Holds at most one base in memory. Nothing is loaded before the first call of `as_model`.

    Between checkpoints of adapters only the adapters are exchanged. A directory of weights is read into the tensors of the
    transformer in memory, so there is never a second copy; offloaded weights are freed and loaded anew.
    """

    def __init__(self, settings: ModelSettings, generate: GenerateSettings, *, offload: bool) -> None:
        """offload: keep the transformer in the host's memory; see `resources.offload`."""
        self.settings, self.generate, self.offload = settings, generate, offload
        self._base: Base | None = None
        self._weights: Path | None = None  # of the base in memory; None: the base's own
        self._adapters: Path | None = None
        self._device: torch.device | None = None

    def as_model(self, transformer: Path | None, device: "torch.device") -> BaseModel:
        """Return the base on a device with a directory's weights or adapters, or with its own weights for None.

        Valid until the next call or `close`.

        Raises:
            ArtifactError: a file is missing or damaged, or adapters are of another base.
        """
        adapters = None if transformer is None else adapters_file(transformer)
        weights = None if adapters else transformer
        base = self._with_weights(weights, device)
        if adapters != self._adapters:
            if self._adapters is not None:
                take_off_adapters(base.transformer)
                self._adapters = None
            if adapters is not None:
                put_on_adapters(base.transformer, adapters)
                self._adapters = adapters
        return base

    def _with_weights(self, weights: Path | None, device: "torch.device") -> Base:
        """Return the base with the weights; if it is in memory already, they are read into its tensors."""
        if self._base is not None and device == self._device:
            if weights == self._weights:
                return self._base
            if not self.offload:
                return self._read(self._base, weights)
        self.close()
        self._base = _load(self.settings, weights, self.generate).place(device, offload=self.offload)
        self._weights, self._device = weights, device
        return self._base

    def _read(self, base: Base, weights: Path | None) -> Base:
        try:
            read_base_weights(base.transformer, weights or Path(self.settings.path) / "transformer")
        except ArtifactError:
            self.close()  # some of its tensors may have been overwritten
            raise
        self._weights = weights
        return base

    def close(self) -> None:
        """Free the base's memory."""
        if self._base is not None:
            self._base = self._weights = self._adapters = None
            gc.collect()  # diffusers' hooks keep the module in a reference cycle
            if self.offload:
                free_pinned_memory()  # another base may be loaded next


def _load(settings: ModelSettings, weights: Path | None, generate: GenerateSettings | None) -> Base:
    """Load a base with its own weights, or with those of a directory."""
    entry = base_entry(settings)
    half = generate is not None and generate.autocast
    with reporting("load the model"):
        model = loading.load_base(entry, settings, empty=weights is not None, half=half)
        if weights is not None:
            model.transformer = loading.load_transformer(entry, weights, half=half)
    model.transformer.requires_grad_(False)
    return model if generate is None else model.decode_in(generate.decode)
