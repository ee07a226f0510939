"""The kernel distance between images and real ones (KID; Binkowski et al. 2018), on any encoder's features."""

import torch
from torch import Tensor

from srpo_core.scorers.packages import require_package


def kernel_distances(features: Tensor, real: Tensor) -> Tensor:
    """Compute one figure per image, (P,), whose mean is the unbiased KID between features (P, D) and `real` (R, D).

    The kernel is the cubic one of torchmetrics. The figure of an image is its first-order influence on the KID, so that
    resampling images gives the KID the right variance: each image enters the term of pairs among themselves twice.
    Figures may be negative, and so may the KID if there is no distance. P and R must be at least 2.

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
