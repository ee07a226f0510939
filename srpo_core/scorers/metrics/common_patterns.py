"""Metrics of what many images have in common, which no single image shows: marks, resampling, single frequencies."""

from collections.abc import Callable
from typing import Final

from torch import Tensor

from srpo_core.scorers import common_patterns as patterns
from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.metric import THIS_PROJECT, Compared, Metric


def _metric(
    of_image: Callable[[Tensor], Tensor],
    of_all: Callable[[Compared], Tensor],
    bounds: tuple[float, float],
    note: str,
) -> Metric:
    """Make a metric of what `of_image` finds in each image, (K, ...), and `of_all` in all of them."""

    def figures(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
        del prompt, context
        return of_image(images)

    def beside_base(compared: Compared, context: MetricContext) -> Tensor:
        del context
        return of_all(compared)

    figures.__doc__ = (
        f"What `{of_all.__name__.lstrip('_')}` needs of each image; the figure of all is in {list(bounds)}."
    )
    return Metric(figures, bounds, THIS_PROJECT, note, beside_base=beside_base)


def _shared_edges(compared: Compared) -> Tensor:
    return patterns.shared_edges(compared.own, compared.prompts)


def _common_edge(compared: Compared) -> Tensor:
    return patterns.strongest_common_edge(compared.own)


def _uneven_phases(compared: Compared) -> Tensor:
    return patterns.uneven_phases(compared.own, compared.base)


def _spectral_peak(compared: Compared) -> Tensor:
    return patterns.spectral_peak(compared.own, compared.base)


SHARED_EDGES: Final = _metric(
    patterns.edges,
    _shared_edges,
    (-3, 3),  # a prompt's influence on a mean cosine
    "how alike the edges in images of different prompts are; a mark in every image raises it",
)
COMMON_EDGE: Final = _metric(
    patterns.edges,
    _common_edge,
    (0, 1),
    "how far the strongest edge that all images share is the same in every image; 1 means that it is in all of them",
)
UNEVEN_PHASES: Final = _metric(
    patterns.phase_profile,
    _uneven_phases,
    (-8, 8),
    "how much more than in the base's images steps between pixels depend on their place modulo 2, 4 and 8; resampling "
    "and compression raise it",
)
SPECTRAL_PEAK: Final = _metric(
    patterns.log_spectrum,
    _spectral_peak,
    (0, 50),
    "how far one fine frequency stands out of the spectrum more than in the base's images, a logarithm of power",
)
