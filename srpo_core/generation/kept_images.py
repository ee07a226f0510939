"""Images that later runs reuse: those of the base and of the champion, which no training changes.

An entry is the pixels of one batch. Its file is named by a hash of everything that determines them: the weights that the
model loads, prompts with their embeddings and seeds, sampler settings and precision, the kind of device, the code that
generates, and the versions of its libraries. Metrics and scorers are not among them: every run measures the pixels itself.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from srpo_core.generation.images import ImageSet
from srpo_core.generation.keys import CODE_OF_MODELS, computed_by, hash_condition
from srpo_core.runtime.kept_files import KeptFiles

PIXELS: Final = "pixels"
# The code that determines pixels: what `images.py` and `models` import, except the scorers, which measure them, and
# what changes no result. tests/generation/test_kept_images.py compares it with the imports.
CODE: Final = ("generation/images.py", *CODE_OF_MODELS)


@dataclass(frozen=True)
class KeptImages:
    """The kept images of one model. files: the entries of all models; source: hash of weights and settings, see `keys.source_of`."""

    files: KeptFiles
    source: str

    def read(self, part: ImageSet, device: torch.device) -> Tensor | None:
        """Return the pixels of a batch, (P, 3, H, W) in 8 bits; None if they are not kept, or damaged."""
        from safetensors.torch import load

        data = self.files.read(self._name(part, device))
        return None if data is None else load(data)[PIXELS]

    def write(self, part: ImageSet, device: torch.device, pixels: Tensor) -> None:
        """Keep the pixels of a batch."""
        from safetensors.torch import save

        self.files.write({self._name(part, device): save({PIXELS: pixels})})

    def _name(self, part: ImageSet, device: torch.device) -> str:
        described = [part.purpose, list(part.prompts), part.seeds_per_prompt, part.seed, computed_by(device)]
        digest = hashlib.sha256(json.dumps([self.source, described]).encode())
        hash_condition(digest, part.condition)
        return f"{digest.hexdigest()[:32]}.images"
