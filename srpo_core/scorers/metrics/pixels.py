"""Metrics of the pixels alone, which show what reward hacking does to images. See `image_statistics`."""

from collections.abc import Callable
from typing import Final

from torch import Tensor

from srpo_core.scorers import image_statistics
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.metric import THIS_PROJECT, Metric


def _metric(statistic: Callable[[Tensor], Tensor], least: float, note: str, greatest: float = 1) -> Metric:
    """Make a metric of a statistic of images in [least, greatest]."""

    def figures(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
        del prompt, context
        return statistic(images)

    figures.__doc__ = statistic.__doc__
    return Metric(figures, (least, greatest), THIS_PROJECT, note)


SATURATION: Final = _metric(image_statistics.saturation, 0, "how strong the colours are, from 0 (grey) to 1")
RED_OVER_GREEN: Final = _metric(
    image_statistics.red_over_green, -1, "colour cast towards red (above 0) or green (below 0)"
)
YELLOW_OVER_BLUE: Final = _metric(
    image_statistics.yellow_over_blue, -1, "colour cast towards yellow (above 0) or blue (below 0)"
)
CLIPPED_HIGHLIGHTS: Final = _metric(
    image_statistics.clipped_highlights, 0, "share of pixels that are pure white"
)
HIGH_FREQUENCY_ENERGY: Final = _metric(
    image_statistics.high_frequency_energy, 0, "share of fine structure, down to single pixels"
)
GRID_ENERGY: Final = _metric(
    image_statistics.grid_energy,
    0,
    "share of edges that repeat every 16 pixels, which patches may leave behind",
)
LOG_DETAIL: Final = _metric(
    image_statistics.log_detail,
    -14,
    "how sharp the image is: the logarithm of its squared second differences",
    3,
)
CONTRAST: Final = _metric(
    image_statistics.contrast, 0, "contrast: the standard deviation of the luminance", 0.5
)
CHANNEL_AGREEMENT: Final = _metric(
    image_statistics.channel_agreement,
    -1,
    "how far red, green and blue have the same edges; coloured noise lowers it",
)
