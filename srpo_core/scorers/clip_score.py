"""The CLIP score (Hessel et al. 2021, arXiv 2104.08718): how well an image fits its text, by a CLIP of OpenAI.

Its directory is that of openai/clip-vit-large-patch14 or another CLIP of OpenAI; see `transformers_clip`. A
score is 100 times the cosine, as torchmetrics has it; the published cut at 0 is left out, for a score that
is below 0 in one image still counts in a mean.
"""

from pathlib import Path
from typing import Final

from srpo_core.scorers.transformers_clip import TransformersClip, load_towers

SCALE: Final = 100.0


def load_clip_score(path: Path) -> TransformersClip:
    """Load the towers from their directory; they compute in fp32.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    return load_towers(path, lambda _: SCALE)
