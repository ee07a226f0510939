"""A judge whose features come from a timm network, with one head for styles and one for subjects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.scorers.entry import ScorerEntry
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.two_head_judge import TwoHeadJudge, judge_files, load_two_head_judge


class TimmJudge(TwoHeadJudge):
    """A `Judge` on top of a timm network."""

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any],
        styles: Sequence[str],
        subjects: Sequence[str],
        image_size: int,
    ) -> None:
        import timm

        network: Any = timm.create_model(model, pretrained=False, num_classes=0, **model_args)
        super().__init__(network, network.num_features, styles, subjects, image_size)


def load_timm_judge(path: Path) -> TimmJudge:
    """Load a judge from its directory. See `load_two_head_judge`.

    Raises:
        ConfigError: the package timm is not installed.
    """
    require_package("timm", f"the scorer in {path}")
    return load_two_head_judge(
        path,
        "timm judge",
        lambda config: TimmJudge(
            config["model"],
            config["model_args"],
            config["styles"],
            config["names"],
            int(config["image_size"]),
        ),
    )


TIMM_JUDGE: Final = ScorerEntry(
    load_timm_judge,
    differentiable=False,
    range=(0, 1),
    licence="Apache-2.0",
    source="timm, any feature network; assets/tiny/recipe",
    files=judge_files,
)
