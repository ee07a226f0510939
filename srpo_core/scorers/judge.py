"""The judge of the tiny family: a small CNN with one head for styles and one for subjects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.two_head_judge import TwoHeadJudge, judge_files, load_two_head_judge

GROUPS: Final = 8


class StyleSubjectJudge(TwoHeadJudge):
    """A `Judge` that is never trained against. Its architecture is described in assets/tiny/README.md."""

    def __init__(
        self, channels: Sequence[int], styles: Sequence[str], subjects: Sequence[str], image_size: int
    ) -> None:
        layers = _stage(3, channels[0], kernel=4, stride=2)
        width = channels[0]
        for index, wider in enumerate(channels):
            layers += _stage(width, wider, kernel=3, stride=1 if index == 0 else 2)
            layers += _stage(wider, wider, kernel=3, stride=1)
            width = wider
        super().__init__(nn.Sequential(*layers), width, styles, subjects, image_size)

    def pool(self, outputs: Tensor) -> Tensor:
        """Add the spatial mean and the spatial maximum of maps (B, D, h, w)."""
        return outputs.mean((2, 3)) + outputs.amax((2, 3))


def load_style_subject_judge(path: Path) -> StyleSubjectJudge:
    """Load a judge from its directory. See `load_two_head_judge`."""
    return load_two_head_judge(
        path,
        "style and subject judge",
        lambda config: StyleSubjectJudge(
            config["channels"], config["styles"], config["names"], int(config["image_size"])
        ),
    )


def _stage(width: int, wider: int, *, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width, wider, kernel, stride, padding=1), nn.GroupNorm(GROUPS, wider), nn.GELU()]


STYLE_SUBJECT_JUDGE: Final = ScorerEntry(
    load_style_subject_judge,
    differentiable=False,
    range=(0, 1),
    licence="Apache-2.0",
    source="assets/tiny/recipe",
    files=judge_files,
)
