"""Metrics: figures of images, by scorers and by plain arithmetic.

A metric receives all images (K, 3, H, W) in [0, 1] of one prompt, one per seed, and returns one figure per image,
(K,). To add one: a file here that defines a `Metric`, and a line in `METRICS` (registry.py). Each scorer in
`evaluate.scorers` adds two metrics by its name: NAME, its plain score, and NAME_sgp, wanted over unwanted.
"""

from srpo_core.scorers.metrics.context import MetricContext
from srpo_core.scorers.metrics.measuring import check_metrics, finish, measure
from srpo_core.scorers.metrics.metric import Metric
from srpo_core.scorers.metrics.registry import (
    METRICS,
    find_metric,
    metric_names,
    metric_notes,
    require_fitting_judge,
    require_free_names,
)

__all__ = [
    "METRICS",
    "Metric",
    "MetricContext",
    "check_metrics",
    "find_metric",
    "finish",
    "measure",
    "metric_names",
    "metric_notes",
    "require_fitting_judge",
    "require_free_names",
]
