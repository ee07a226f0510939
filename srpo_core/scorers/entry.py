"""What an entry of the registry `scorers` carries."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_core.protocols import RewardModel


@dataclass(frozen=True)
class ScorerEntry:
    """One entry of the registry `scorers`.

    load: loads a directory of weights as a `RewardModel` (differentiable) or as a `Judge` (not differentiable).
    range: lowest and highest score; for a judge, of its probabilities.
    licence: SPDX identifier of the weights if they are published, else of the code that reads them.
    source: the weights' id on the hub or the library of the architecture, and the paper if there is one.
    build: builds a reward's architecture for a directory, with random weights on torch's default device. `srpo plan`
        calls it on the meta device to count FLOPs and bytes. Every differentiable scorer has one.
    reads_texts: whether a score depends on the text. One that does not is not asked about texts before it is used.
    """

    load: Callable[[Path], Any]
    differentiable: bool
    range: tuple[float, float]
    licence: str
    source: str
    build: Callable[[Path], RewardModel] | None = None
    reads_texts: bool = True

    def __post_init__(self) -> None:
        """Check that a scorer that can be trained against can also be planned."""
        assert not self.differentiable or self.build is not None, "a differentiable scorer needs `build`"
