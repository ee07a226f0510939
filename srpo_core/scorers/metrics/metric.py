"""What an entry of the registry `metrics` carries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from srpo_core.errors import pick
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.registry import SCORERS

THIS_PROJECT: Final = "this project"
PROJECT_LICENCE: Final = "Apache-2.0"

JudgeKind = Literal["any", "styles", "texts"]
Range = tuple[float, float]


def project_licence(context: MetricContext) -> str:
    """The licence of a metric that needs no scorer."""
    del context
    return PROJECT_LICENCE


def reward_licence(context: MetricContext) -> str:
    """The licences of a metric of the rewards, each once."""
    licences = (pick(SCORERS, one.scorer, "scorer").licence for one in context.reward_settings)
    return ", ".join(dict.fromkeys(licences))


def judge_licence(context: MetricContext) -> str:
    """The licence of a metric of the judge."""
    return pick(SCORERS, context.judge_settings.scorer, "scorer").licence


def no_check(context: MetricContext, prompts: Sequence[str]) -> None:
    """Check nothing: the metric can be computed for any prompts."""


@dataclass(frozen=True)
class Compared:
    """What a metric needs of all images of a model and of the base: the results of its `figures`, (P, ...) each.

    Row by row the images have the same prompt and the same noise; prompts: (P,) numbers of the prompts, from 0.
    """

    own: Tensor
    base: Tensor
    prompts: Tensor


@dataclass(frozen=True)
class Metric:
    """One entry of the registry `metrics`.

    figures: (images of one prompt, the prompt, context) -> one figure per image.
    range: lowest and highest figure, or a function of the context that returns them; see `range_in`.
    source: where it is defined.
    note: what it measures, in words for the report.
    licence: (context) -> SPDX identifier of the scorer's weights, or of this project if no scorer measures.
    judge: the judge it needs: one that classifies styles and subjects, one that reads texts, or any (or none).
    needs_seeds: whether it compares the images of a prompt, so that one seed per prompt is not enough.
    needs_real_images: whether it compares with real images, which only the stage evaluate reads.
    check: raises before images are generated if the metric cannot be computed for these prompts.
    over_all: for a metric that is defined only over all images of a model: from the results of `figures` for all
        of them, (P, D), to one figure per image.
    beside_base: for a metric that compares all images with the base's, which only the stage evaluate does: from the
        results of `figures` for both to one figure per image, (P,), or to one number for all of them.
    """

    figures: Callable[[Tensor, str, MetricContext], Tensor]
    range: Range | Callable[[MetricContext], Range]
    source: str
    note: str
    licence: Callable[[MetricContext], str] = project_licence
    judge: JudgeKind = "any"
    needs_seeds: bool = False
    needs_real_images: bool = False
    check: Callable[[MetricContext, Sequence[str]], None] = no_check
    over_all: Callable[[Tensor, MetricContext], Tensor] | None = None
    beside_base: Callable[[Compared, MetricContext], Tensor] | None = None

    def range_in(self, context: MetricContext) -> Range:
        """Return the lowest and the highest figure with the scorers and weights of a run."""
        return self.range(context) if callable(self.range) else self.range

    @property
    def measures_single_images(self) -> bool:
        """Whether one image of a prompt has a figure of its own."""
        return not self.needs_seeds and self.over_all is None and self.beside_base is None
