"""What a run needs on a cluster, from the settings alone and before it starts: bytes, FLOPs, time and money."""

from srpo_core.plan.case import Case, Counts, Sizes
from srpo_core.plan.cluster import GB, TERA, Cluster
from srpo_core.plan.estimates import Plan
from srpo_core.plan.images import Generated
from srpo_core.plan.making import make_plan
from srpo_core.plan.presets import PRESETS, Preset, plan_presets
from srpo_core.plan.remedies import remedies

__all__ = [
    "GB",
    "PRESETS",
    "TERA",
    "Case",
    "Cluster",
    "Counts",
    "Generated",
    "Plan",
    "Preset",
    "Sizes",
    "make_plan",
    "plan_presets",
    "remedies",
]
