"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H fine-tuned on human choices.

Its directory is that of PickScore_v1; see `transformers_clip`.
"""

from pathlib import Path
from typing import Any, Final

from srpo_core.scorers.transformers_clip import TransformersClip, load_towers

# SRPO's reference divides PickScore by 20. Images score 20 to 23 (Shen et al. 2025, table 1), so that
# the reward is about 1, the order of the margin 0.7 in its loss.
REFERENCE_DIVISOR: Final = 20.0


def load_pick_score(path: Path) -> TransformersClip:
    """Load PickScore from its directory; it computes in fp32.

    A PickScore is exp(logit_scale)·<i, t>; `scale` is exp(logit_scale) / 20, as in SRPO's reference.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    return load_towers(path, _scale)


def _scale(clip: Any) -> float:
    return float(clip.logit_scale.detach().exp()) / REFERENCE_DIVISOR
