"""Metrics of distances between images, on the judge's features: among seeds, and to real images."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize as l2_normalize

from srpo_core.scorers.kernel_distance import kernel_distances
from srpo_core.scorers.metrics.context import MetricContext, judge_features, kernel_features
from srpo_core.scorers.metrics.metric import THIS_PROJECT, Metric, judge_licence
from srpo_core.scorers.packages import require_package

UNBOUNDED: Final = (float("-inf"), float("inf"))


def diversity(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """Mean distance of each image to the other seeds' images of its prompt, in [0, 2].

    The distance is Euclidean between the judge's features at unit length, sqrt(2 - 2 cosine): it is 0 if all seeds
    give one image. It depends on style: images that all have the wanted style are closer to each other than images
    of a base that generates several styles.
    """
    del prompt  # all images are of one prompt
    features = l2_normalize(judge_features(images, context), dim=-1)
    distances: Tensor = torch.linalg.vector_norm(features[:, None] - features[None, :], dim=-1)
    return torch.sum(distances, 1) / (len(images) - 1)


def kid(images: Tensor, prompt: str, context: MetricContext) -> Tensor:
    """Kernel distance to the data's preferred images, in [-inf, inf]; 0 means no distance. See `kernel_distances`.

    Computed on the judge's features; if the judge classifies styles, to the images in the wanted styles. This
    function returns the features (K, D), because only all images together have a distance.
    """
    del prompt
    return kernel_features(images, context)


def _require_torchmetrics(context: MetricContext, prompts: Sequence[str]) -> None:
    del context, prompts
    require_package("torchmetrics", "the metric kid")


DIVERSITY: Final = Metric(
    diversity,
    (0, 2),
    THIS_PROJECT,
    "how much the images of one prompt differ from seed to seed",
    judge_licence,
    needs_seeds=True,
)
KID: Final = Metric(
    kid,
    UNBOUNDED,
    "arXiv 1801.01401; torchmetrics",
    "distance from real images (in the wanted style, if the judge classifies styles); 0 means no distance",
    judge_licence,
    needs_real_images=True,
    check=_require_torchmetrics,
    over_all=lambda features, context: kernel_distances(features, context.real_features),
)
