"""Activation checkpointing of a share of a transformer's blocks, through diffusers' own switch for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from srpo_core.models.sharding import blocks


@dataclass(frozen=True)
class SomeBlocks:
    """Runs blocks; the activations of the `chosen` ones are recomputed in the backward pass."""

    chosen: frozenset[nn.Module]

    def __call__(self, block: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None) -> Any:
        """Compute the output of `block`, with `forward` instead of the block's own if it is given."""
        run = forward or block
        return checkpoint(run, *inputs, use_reentrant=False) if block in self.chosen else run(*inputs)


def checkpoint_blocks(transformer: Any, share: float) -> None:
    """Keep no activations inside a share of the transformer's blocks, evenly spaced over its depth."""
    if chosen := frozenset(evenly_spaced_share(blocks(transformer), share)):
        transformer.enable_gradient_checkpointing(SomeBlocks(chosen))


def evenly_spaced_share(blocks: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """Choose floor(share · n) of n blocks, evenly spaced: at 0.5 every second one."""
    # a share such as 0.29 of 100 must not lose a block to rounding
    counts = [int(share * place + 1e-9) for place in range(len(blocks) + 1)]
    return [block for block, before, after in zip(blocks, counts, counts[1:], strict=False) if after > before]
