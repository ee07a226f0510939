"""Bytes that devices exchange in training."""

from srpo_core.algorithm.rollout import real_share
from srpo_core.plan.case import Case


def traffic_of_a_step(case: Case) -> float:
    """Bytes that a device sends in one step: gathered weights and scattered gradients, or one sum of gradients."""
    train, sizes, n = case.settings.train, case.sizes, case.cluster.gpus
    share = (n - 1) / n
    if case.shards == 1:
        return 2 * share * 4 * sizes.trained
    cost = case.cost_of_method
    calls = cost.trained_calls // cost.images_per_call
    rollouts = cost.rollout_calls if real_share(train.rollout) < 1 else 0
    forwards = 1 if train.compute.rollout_copy else rollouts  # the copy is filled once per step
    gathers = forwards + 2 * calls + cost.recomputed_calls
    return (
        case.micro_batches * share * (gathers * case.gathered_width * sizes.all + calls * 4 * sizes.trained)
    )


def seconds_of_a_gather(case: Case) -> float:
    """Time to gather all weights of a sharded model for a forward pass."""
    n = case.cluster.gpus
    if case.shards == 1:
        return 0.0
    return (n - 1) / n * case.gathered_width * case.sizes.all / case.cluster.bandwidth
