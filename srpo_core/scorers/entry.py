"""What an entry of the registry `scorers` carries."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from srpo_core.protocols import RewardModel


class ScorerFiles(NamedTuple):
    """The files that a scorer reads; config: None if the published architecture is used."""

    config: Path | None
    weights: Path


@dataclass(frozen=True)
class ScorerEntry:
    """One entry of the registry `scorers`.

    load: loads a directory of weights as a `RewardModel` (differentiable) or as a `Judge` (not differentiable).
    range: lowest and highest score; for a judge, of its probabilities.
    licence: SPDX identifier of the weights if they are published, else of the code that reads them.
    source: the weights' id on the hub or the library of the architecture, and the paper if there is one.
    build: builds a reward's architecture for a directory, with random weights on torch's default device. `srpo plan`
        calls it on the meta device to count FLOPs and bytes. Every differentiable scorer has one.
    files: from a directory to the files that `load` reads, which may be missing; raises `ArtifactError` if they cannot be
        told. `srpo doctor` checks them; None: it checks all files of weights and texts.
    reads_texts: whether a score depends on the text. One that does not is not asked about texts before it is used.
    """

    load: Callable[[Path], Any]
    differentiable: bool
    range: tuple[float, float]
    licence: str
    source: str
    build: Callable[[Path], RewardModel] | None = None
    reads_texts: bool = True
    files: Callable[[Path], ScorerFiles] | None = None

    def __post_init__(self) -> None:
        """Check that a scorer that can be trained against can also be planned."""
        assert not self.differentiable or self.build is not None, "a differentiable scorer needs `build`"
