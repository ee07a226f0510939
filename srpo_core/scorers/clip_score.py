"""The CLIP score (Hessel et al. 2021, arXiv 2104.08718): how well an image fits its text, by OpenAI's CLIP.

The directory is that of openai/clip-vit-large-patch14 or of another CLIP by OpenAI; see `transformers_clip`. A
score is 100 times the cosine, as in torchmetrics. Unlike the published score it is not clamped at 0, because a
negative score of one image must still count in a mean.
"""

from pathlib import Path
from typing import Final

from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.transformers_clip import TransformersClip, build_towers, clip_files, load_towers

SCALE: Final = 100.0


def load_clip_score(path: Path) -> TransformersClip:
    """Load the towers from their directory, in fp32.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    return load_towers(path, lambda _: SCALE)


CLIP_SCORE: Final = ScorerEntry(
    load_clip_score,
    differentiable=True,
    range=(-100, 100),
    licence="MIT",
    source="openai/clip-vit-large-patch14, arXiv 2104.08718",
    build=build_towers,
    files=clip_files,
)
