"""FLOPs and time of one optimizer step."""

from collections.abc import Mapping
from typing import Final

from srpo_core.plan.case import Case
from srpo_core.plan.rollouts import num_pairs, rolled_out_share

FLOPS_OF_ADAMW: Final = 20  # per parameter


def flops_of_a_step(case: Case) -> Mapping[str, float]:
    """FLOPs of one step of one device by phase; of pairs that are generated anew the average over all steps."""
    counted, cost = case.counts.call, case.cost_of_method
    samples = case.images / counted.num_images
    rolled_out = samples * rolled_out_share(case.settings.train)
    recomputed = cost.recomputed_calls * counted.rollout.flops
    scored = samples * cost.scored_images
    return {
        "rollout": cost.rollout_calls * rolled_out * counted.rollout.flops,
        "transformer": samples * (cost.trained_calls * counted.transformer.flops + recomputed),
        "decoder": scored * (counted.decode.flops if cost.reward_gradient else counted.decode.forward),
        "reward": scored * (counted.reward.flops if cost.reward_gradient else counted.reward.forward),
        "optimizer": cost.updates * FLOPS_OF_ADAMW * case.sizes.trained / case.shards,
    }


def compute_seconds(case: Case) -> float:
    """Time of a step's FLOPs at the given share of the device's peak."""
    return sum(flops_of_a_step(case).values()) / (case.cluster.mfu * case.cluster.peak_flops)


def flops_of_the_steps(case: Case) -> float:
    """FLOPs of all optimizer steps on all devices together."""
    return case.settings.train.steps * case.cluster.gpus * sum(flops_of_a_step(case).values())


def flops_of_the_pairs(case: Case) -> float:
    """FLOPs of the stage `rollouts` if it finds no pair of an earlier run."""
    train = case.settings.train
    flops = case.counts.velocity[case.half].flops
    return num_pairs(train) * train.rollout.num_inference_steps * flops
