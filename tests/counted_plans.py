"""Plans for tests: models that are equal in everything that is counted are counted once in a test process."""

from functools import cache

from srpo_core.plan import Cluster, Plan
from srpo_core.plan.making import Counter


@cache
def shared_counter() -> Counter:
    return Counter()


def counted_plan(settings, cluster: Cluster) -> Plan:
    return shared_counter().plan(settings, cluster)
