"""The kernel distance of images to real ones (KID; Binkowski et al. 2018), on any encoder's features."""

import torch
from torch import Tensor

from srpo_core.scorers.packages import require_package


def kernel_distances(features: Tensor, real: Tensor) -> Tensor:
    """One figure for each image's features (P, D) whose mean is the unbiased KID to `real` (R, D), (P,).

    The kernel is torchmetrics' cubic one. An image's figure is its first-order influence on the KID, so that
    resampling images gives the KID its right spread: an image enters the term of pairs among themselves
    twice. Figures may be negative, and so may the KID where there is no distance. Needs P and R of 2 or more.

    Raises:
        ConfigError: the package torchmetrics is not installed.
    """
    require_package("torchmetrics", "the metric kid")
    from torchmetrics.image.kid import poly_kernel

    own, cross, theirs = poly_kernel(features, features), poly_kernel(features, real), poly_kernel(real, real)
    of_each = (own.sum(1) - own.diagonal()) / (len(own) - 1)
    constant = (theirs.sum() - theirs.diagonal().sum()) / (len(theirs) * (len(theirs) - 1))
    distances: Tensor = 2 * of_each - of_each.mean() - 2 * cross.mean(1) + constant
    return distances.to(torch.float64)
