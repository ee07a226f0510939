"""What a run needs on a cluster, from the settings alone and before it starts: bytes, FLOPs, time and money."""

from srpo_core.plan.estimates import GB, TERA, Cluster, Generated, Plan, Sizes
from srpo_core.plan.making import make_plan
from srpo_core.plan.remedies import remedies

__all__ = ["GB", "TERA", "Cluster", "Generated", "Plan", "Sizes", "make_plan", "remedies"]
