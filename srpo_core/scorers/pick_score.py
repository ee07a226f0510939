"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H fine-tuned on human choices.

The directory is that of PickScore_v1; see `transformers_clip`.
"""

from pathlib import Path
from typing import Any, Final

from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.transformers_clip import TransformersClip, build_towers, clip_files, load_towers

# SRPO's reference divides PickScore by 20. Images score 20 to 23 (Shen et al. 2025, table 1), so the reward is
# about 1, which is the order of the margin 0.7 in its loss.
REFERENCE_DIVISOR: Final = 20.0


def load_pick_score(path: Path) -> TransformersClip:
    """Load PickScore from its directory, in fp32.

    A PickScore is exp(logit_scale)·<i, t>. `scale` is exp(logit_scale) / 20, as in SRPO's reference.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    return load_towers(path, _scale)


def _scale(clip: Any) -> float:
    return float(clip.logit_scale.detach().exp()) / REFERENCE_DIVISOR


PICK_SCORE: Final = ScorerEntry(
    load_pick_score,
    differentiable=True,
    range=(-5, 5),  # exp(logit_scale) is at most 100, divided by 20
    licence="MIT",
    source="yuvalkirstain/PickScore_v1, arXiv 2305.01569",
    build=build_towers,
    files=clip_files,
)
