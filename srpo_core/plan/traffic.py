"""Bytes that devices exchange in training."""

from srpo_core.algorithm.rollout import real_share
from srpo_core.plan.case import Case


def traffic_of_a_step(case: Case) -> float:
    """Bytes that a device sends in one step: gathered weights and scattered gradients, and sums over the copies."""
    train, sizes, n = case.settings.train, case.sizes, case.shards
    if n == 1:
        return traffic_across_copies(case)
    cost = case.cost_of_method
    calls = cost.trained_calls // cost.images_per_call
    rollouts = cost.rollout_calls if real_share(train.rollout) < 1 else 0
    gathers = gathers_of(case, rollouts) + 2 * calls + cost.recomputed_calls
    each = (n - 1) / n * (gathers * case.gathered_width * sizes.all + calls * 4 * sizes.trained)
    return case.micro_batches * each + traffic_across_copies(case)


def traffic_across_copies(case: Case) -> float:
    """Bytes of a step's traffic that sum gradients over the copies of the model: after each backward pass if sharded."""
    copies, cost = case.cluster.gpus // case.shards, case.cost_of_method
    sums = 1 if case.shards == 1 else case.micro_batches * cost.trained_calls // cost.images_per_call
    return sums * 2 * (copies - 1) / copies * 4 * case.sizes.trained / case.shards


def gathers_of(case: Case, calls: int) -> int:
    """Number of times that a sharded model is gathered for successive calls without gradients."""
    return min(calls, 1) if case.settings.train.compute.gather_rollout else calls


def seconds_of_a_gather(case: Case) -> float:
    """Time to gather all weights of a sharded model for a forward pass."""
    n = case.shards
    return (n - 1) / n * case.gathered_width * case.sizes.all / case.cluster.bandwidth
