"""Bytes that devices exchange in training."""

from srpo_core.plan.case import Case
from srpo_core.plan.rollouts import rolled_out_share


def traffic_of_a_step(case: Case) -> float:
    """Bytes that a device sends in one step: gathered weights and scattered gradients, and sums over the copies."""
    return traffic_in_a_copy(case) + traffic_across_copies(case)


def traffic_seconds(case: Case) -> float:
    """Time of a step's traffic if none of it overlaps with computing."""
    inside, across = traffic_in_a_copy(case), traffic_across_copies(case)
    return inside / bandwidth_in_a_copy(case) + across / bandwidth_across_copies(case)


def traffic_in_a_copy(case: Case) -> float:
    """Bytes of a step's traffic between the devices that share a copy of the model."""
    train, sizes, n = case.settings.train, case.sizes, case.shards
    if n == 1:
        return 0.0
    cost = case.cost_of_method
    calls = cost.trained_calls // cost.images_per_call
    rollouts = rolled_out_share(train) * gathers_of(case, cost.rollout_calls // cost.images_per_rollout_call)
    gathers = rollouts + 2 * calls + cost.recomputed_calls
    each = (n - 1) / n * (gathers * case.gathered_width * sizes.all + calls * 4 * sizes.trained)
    return case.micro_batches * each


def traffic_across_copies(case: Case) -> float:
    """Bytes of a step's traffic that sum gradients over the copies of the model: before each update, or if sharded after each backward pass."""
    copies, cost = case.cluster.gpus // case.shards, case.cost_of_method
    sums = (
        cost.updates if case.shards == 1 else case.micro_batches * cost.trained_calls // cost.images_per_call
    )
    return sums * 2 * (copies - 1) / copies * 4 * case.sizes.trained / case.shards


def bandwidth_in_a_copy(case: Case) -> float:
    """Bytes per second that a device sends to the others of its copy: a ring enters and leaves each node once."""
    cluster = case.cluster
    return (
        cluster.bandwidth
        if case.shards <= cluster.node_gpus
        else min(cluster.bandwidth, cluster.node_bandwidth)
    )


def bandwidth_across_copies(case: Case) -> float:
    """Bytes per second that a device sends to the other copies: the sums of a node's shards leave it at the same time."""
    cluster = case.cluster
    if cluster.gpus <= cluster.node_gpus:
        return cluster.bandwidth
    return min(cluster.bandwidth, cluster.node_bandwidth / min(case.shards, cluster.node_gpus))


def gathers_of(case: Case, calls: int) -> int:
    """Number of times that a sharded model is gathered for successive calls without gradients."""
    return min(calls, 1) if case.settings.train.compute.gather_rollout else calls


def seconds_of_a_gather(case: Case) -> float:
    """Time to gather all weights of a sharded model for a forward pass."""
    n = case.shards
    return (n - 1) / n * case.gathered_width * case.sizes.all / bandwidth_in_a_copy(case)
