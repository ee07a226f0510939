"""The registry `metrics`, and the metrics that the settings name."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from srpo_core.config import ScorerSettings
from srpo_core.errors import ConfigError, pick
from srpo_core.scorers.metrics import (
    broken_images,
    common_patterns,
    feature_distances,
    pixels,
    styles_and_subjects,
    text_scores,
)
from srpo_core.scorers.metrics.metric import JudgeKind, Metric
from srpo_core.scorers.registry import SCORERS

SGP: Final = "_sgp"
RESERVED: Final = frozenset({"pixels"})  # the name under which images are stored beside their figures
JUDGES: Final[Mapping[JudgeKind, str]] = MappingProxyType(
    {"styles": "classifies styles and subjects", "texts": "scores images against texts"}
)

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        "reward": text_scores.REWARD,
        "relative_reward": text_scores.RELATIVE_REWARD,
        "judge_wanted": styles_and_subjects.JUDGE_WANTED,
        "judge_top1": styles_and_subjects.JUDGE_TOP1,
        "judge_top5": styles_and_subjects.JUDGE_TOP5,
        "judge_score": text_scores.JUDGE_SCORE,
        "judge_sgp": text_scores.JUDGE_SGP,
        "diversity": feature_distances.DIVERSITY,
        "kid": feature_distances.KID,
        "saturation": pixels.SATURATION,
        "red_over_green": pixels.RED_OVER_GREEN,
        "yellow_over_blue": pixels.YELLOW_OVER_BLUE,
        "clipped_highlights": pixels.CLIPPED_HIGHLIGHTS,
        "high_frequency_energy": pixels.HIGH_FREQUENCY_ENERGY,
        "grid_energy": pixels.GRID_ENERGY,
        "log_detail": pixels.LOG_DETAIL,
        "contrast": pixels.CONTRAST,
        "channel_agreement": pixels.CHANNEL_AGREEMENT,
        "broken": broken_images.BROKEN,
        "copied": broken_images.COPIED,
        "repeated": broken_images.REPEATED,
        "shared_edges": common_patterns.SHARED_EDGES,
        "common_edge": common_patterns.COMMON_EDGE,
        "uneven_phases": common_patterns.UNEVEN_PHASES,
        "spectral_peak": common_patterns.SPECTRAL_PEAK,
    }
)


def metric_names(metrics: Sequence[str], scorers: Collection[str]) -> list[str]:
    """List all metrics that the settings ask for, each once: those of the registry, and two per further scorer."""
    return list(dict.fromkeys([*metrics, *(name for one in scorers for name in (one, one + SGP))]))


def find_metric(name: str, scorers: Mapping[str, ScorerSettings]) -> Metric:
    """Find a metric of the registry or of one of the further `scorers`. An unknown name is a `ConfigError`."""
    scorer = name.removesuffix(SGP)
    if name in METRICS or scorer not in scorers:
        return pick(METRICS, name, "metric")
    key = scorers[scorer].scorer
    plain, sgp = text_scores.metrics_of_scorer(scorer, key, pick(SCORERS, key, "scorer"))
    return plain if name == scorer else sgp


def metric_notes(scorers: Mapping[str, ScorerSettings]) -> dict[str, str]:
    """What each metric of the registry and of the further `scorers` measures, in words for the report, by name."""
    return {name: find_metric(name, scorers).note for name in metric_names(list(METRICS), scorers)}


def require_free_names(scorers: Collection[str]) -> None:
    """Raise `ConfigError` if the name of a further scorer, or of one of its metrics, is taken."""
    for name in scorers:
        if name in RESERVED or {name, name + SGP} & METRICS.keys() or name + SGP in scorers:
            raise ConfigError(
                f"evaluate.scorers: {name!r} or {name + SGP!r} is the name of a metric: rename the scorer"
            )


def require_fitting_judge(name: str, metric: Metric, judge: str) -> None:
    """Raise `ConfigError` if the scorer `judge` is not the kind of judge that the metric `name` needs."""
    kind: JudgeKind = "texts" if pick(SCORERS, judge, "scorer").differentiable else "styles"
    if metric.judge in ("any", kind):
        return
    others = ", ".join(other for other, entry in METRICS.items() if entry.judge == kind)
    raise ConfigError(
        f"metric {name!r} needs a judge that {JUDGES[metric.judge]}, but {judge!r} {JUDGES[kind]}: measure {others} "
        "instead, or set another judge"
    )
