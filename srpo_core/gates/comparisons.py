"""The registry of comparisons: how a rule compares the aligned model with another one.

To add one: a `Comparison`, here or in a file of its own, and a line in `COMPARISONS`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np

from srpo_core.artifacts import ALIGNED
from srpo_core.config import GateRule
from srpo_core.errors import ConfigError, pick
from srpo_core.gates.bootstrap import Floats
from srpo_core.gates.people import require_fitting
from srpo_core.gates.shares import Integers, share_of_images, share_of_prompts, whole_figure

WINS: Final = "wins against "

Direct = Callable[[Floats, Integers, float], tuple[float, float, float]]
Column = tuple[str, str, float]  # (model, metric, 0), or ("wins against <model>", metric, tie)


@dataclass(frozen=True)
class Comparison:
    """One way to compare the aligned model with another one.

    columns: what to average over the prompts; statistic: from these averages to the figure, which rises with the first
    average and falls with the second, if there is one; neutral: the figure of two equal models, NaN if it compares with
    none; describe: the figure in words; format: a figure as a short text; label: what the report calls it; equality:
    what the report calls the neutral figure; allows_tie: whether the setting `tie` applies; range: the
    least and the greatest possible figure; direct: for a comparison without resampling, from the images' figures (P,),
    the index of each image's prompt (P,) and the confidence to the figure and the ends of its interval; counts: for a
    share, what it is a share of; is_ratio: whether the figure is a ratio, whose spread is in proportion to its size.
    """

    columns: Callable[[GateRule], list[Column]]
    statistic: Callable[[list[Floats]], Floats]
    neutral: float
    describe: Callable[[GateRule, float], str]
    format: Callable[[float], str]
    label: Callable[[GateRule], str]
    equality: str = ""
    allows_tie: bool = False
    range: tuple[float, float] = (-math.inf, math.inf)
    direct: Direct | None = None
    counts: Literal["images", "prompts"] | None = None
    is_ratio: bool = False

    @property
    def needs_model(self) -> bool:
        """Whether there is another model to compare with."""
        return not math.isnan(self.neutral)


def require_valid_rules(rules: Mapping[str, GateRule]) -> None:
    """Check that each rule's parts fit its comparison.

    Raises:
        ConfigError: a comparison is unknown, or against, tie or side does not fit it; names the key.
    """
    for name, rule in rules.items():
        key = f"gate.rules.{name}"
        try:
            comparison = pick(COMPARISONS, rule.compare, "comparison")
        except ConfigError as error:
            raise ConfigError(f"{key}.compare: {error}") from None
        require_fitting(name, rule)
        if rule.tie and not comparison.allows_tie:
            known = ", ".join(other for other, entry in COMPARISONS.items() if entry.allows_tie)
            raise ConfigError(f"{key}.tie: {rule.compare} has no ties: set compare to {known}, or tie to 0")
        if comparison.needs_model == (rule.against == "absolute"):
            model = "base or champion" if comparison.needs_model else "absolute"
            raise ConfigError(
                f"{key}.against is {rule.against}, but compare {rule.compare} needs against: {model}"
            )
        if comparison.direct and (rule.side != "at_most" or rule.severity not in ("refuse", "warn")):
            raise ConfigError(
                f"{key}: compare {rule.compare} has only an upper end, which must be shown to be below the margin: set "
                "side to at_most, and severity to refuse or warn"
            )
        if rule.side == "within" and not (comparison.needs_model and rule.margin >= 0):
            raise ConfigError(
                f"{key}.side: within needs a comparison with a model and a margin of 0 or more; the margin is {rule.margin}"
            )


def _both_means(rule: GateRule) -> list[Column]:
    return [(ALIGNED, rule.metric, 0.0), (rule.against, rule.metric, 0.0)]


def _own(rule: GateRule) -> list[Column]:
    return [(ALIGNED, rule.metric, 0.0)]


def _ratio(means: list[Floats]) -> Floats:
    """Ratio of the means; NaN where the other model's is not above 0."""
    ours, theirs = means
    positive = theirs > 0
    return np.where(positive, ours / np.where(positive, theirs, 1), np.nan)


def _describe_wins(rule: GateRule, share: float) -> str:
    ties = f" (differences up to {rule.tie:g} count as half a win)" if rule.tie else ""
    return f"by {rule.metric}, {share:.1%} of the images beat those of the {rule.against}{ties}"


def _label_wins(rule: GateRule) -> str:
    ties = f", differences up to {rule.tie:g} count as half a win" if rule.tie else ""
    return f"share of images that beat the {rule.against}{ties}"


COMPARISONS: Final[Mapping[str, Comparison]] = MappingProxyType(
    {
        "difference": Comparison(
            _both_means,
            lambda means: means[0] - means[1],
            neutral=0.0,
            describe=lambda rule, value: f"{rule.metric} changed by {value:+.3f} against the {rule.against}",
            format=lambda value: f"{value:+.3f}",
            label=lambda rule: f"change against the {rule.against}",
            equality="no change",
        ),
        "ratio": Comparison(
            _both_means,
            _ratio,
            neutral=1.0,
            describe=lambda rule, value: f"{rule.metric} is {value:.3f} times that of the {rule.against}",
            format=lambda value: f"{value:.3f}",
            label=lambda rule: f"ratio to the {rule.against}",
            equality="equality",
            is_ratio=True,
        ),
        "win_rate": Comparison(
            lambda rule: [(f"{WINS}{rule.against}", rule.metric, rule.tie)],
            lambda means: means[0],
            neutral=0.5,
            describe=_describe_wins,
            format=lambda value: f"{value:.1%}",
            label=_label_wins,
            equality="one half",
            allows_tie=True,
            range=(0.0, 1.0),
        ),
        "value": Comparison(
            _own,
            lambda means: means[0],
            neutral=math.nan,
            describe=lambda rule, value: f"{rule.metric} is {value:.3f}",
            format=lambda value: f"{value:.3f}",
            label=lambda rule: "the figure itself",
        ),
        "factor": Comparison(
            _both_means,
            lambda means: np.exp(means[0] - means[1]),
            neutral=1.0,
            describe=lambda rule, value: (
                f"the mean of {rule.metric}, a logarithm, is {value:.3f} times that of the {rule.against}"
            ),
            format=lambda value: f"{value:.3f}",
            label=lambda rule: f"factor to the {rule.against}, image by image",
            equality="equality",
            is_ratio=True,
        ),
        "share": Comparison(
            _own,
            lambda means: means[0],
            neutral=math.nan,
            describe=lambda rule, value: f"{rule.metric}: {value:.1%} of the images",
            format=lambda value: f"{value:.1%}",
            label=lambda rule: "share of images, exact interval",
            direct=share_of_images,
            counts="images",
            range=(0.0, 1.0),
        ),
        "share_of_prompts": Comparison(
            _own,
            lambda means: means[0],
            neutral=math.nan,
            describe=lambda rule, value: f"{rule.metric}: most images of {value:.1%} of the prompts",
            format=lambda value: f"{value:.1%}",
            label=lambda rule: "share of prompts with most images so, exact interval",
            direct=share_of_prompts,
            counts="prompts",
            range=(0.0, 1.0),
        ),
        "whole": Comparison(
            _own,
            lambda means: means[0],
            neutral=math.nan,
            describe=lambda rule, value: f"{rule.metric} of all images together is {value:.3f}",
            format=lambda value: f"{value:.3f}",
            label=lambda rule: "figure of all images together, without an interval",
            direct=whole_figure,
        ),
    }
)
