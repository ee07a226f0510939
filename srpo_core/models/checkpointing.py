"""Activation checkpointing of a share of a transformer's blocks, through diffusers' own switch for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class SomeBlocks:
    """Runs blocks; what the `chosen` ones would keep for the way back is computed again there."""

    chosen: frozenset[nn.Module]

    def __call__(self, block: nn.Module, *inputs: Any, forward: Callable[..., Any] | None = None) -> Any:
        """The output of `block`, computed by `forward` where the block's own is not wanted."""
        run = forward or block
        return checkpoint(run, *inputs, use_reentrant=False) if block in self.chosen else run(*inputs)


def checkpoint_blocks(transformer: Any, share: float) -> None:
    """From now on keep no activations inside a share of the transformer's blocks, evenly spread over its depth."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    if chosen := frozenset(evenly_spread(blocks, share)):
        transformer.enable_gradient_checkpointing(SomeBlocks(chosen))


def evenly_spread(blocks: Sequence[nn.Module], share: float) -> list[nn.Module]:
    """floor(share · n) of n blocks, evenly spread: at 0.5 every second one."""
    # a share such as 0.29 of 100 must not lose a block to rounding
    counts = [int(share * place + 1e-9) for place in range(len(blocks) + 1)]
    return [block for block, before, after in zip(blocks, counts, counts[1:], strict=False) if after > before]
