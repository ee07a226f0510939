"""The exponential moving average (EMA) of the trained weights, by diffusers: what is sampled and released if it is set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from srpo_core.config import EmaSettings
from srpo_core.training.state import trained_parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class WeightAverage:
    """The average of the parameters that require a gradient: of whole weights or adapters, sharded as they are.

    After step n it is average + (1 - d) · (weights - average), where d = min((1 + m) / (10 + m), decay) and
    m = n - start - 1; while m < 1, d is 0 and the average follows the weights. d depends on the step alone.
    """

    def __init__(self, transformer: "torch.nn.Module", settings: EmaSettings) -> None:
        """Start with the weights as they are."""
        from diffusers.training_utils import EMAModel

        self._transformer = transformer
        self._ema = EMAModel(self._parameters(), decay=settings.decay, update_after_step=settings.start)

    def tensors(self) -> "Mapping[str, Tensor]":
        """Return the averages by the names of their parameters; a checkpoint is read into them in place."""
        return dict(zip(trained_parameters(self._transformer), self._ema.shadow_params, strict=True))

    def update(self, step: int) -> None:
        """Include the weights after a step, counted from 1."""
        self._ema.optimization_step = step - 1
        self._ema.step(self._parameters())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context, let the transformer have the averages as its weights.

        Weights and averages are exchanged tensor by tensor and back, to the bit, without a copy of all of them.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _parameters(self) -> "list[torch.nn.Parameter]":
        return [parameter for parameter in self._transformer.parameters() if parameter.requires_grad]

    def _exchange(self) -> None:
        import torch

        with torch.no_grad():
            for parameter, average in zip(self._parameters(), self._ema.shadow_params, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(kept)
