"""The images that a run generates beside its rollouts: how many, and how long that takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from srpo_core.plan.case import Case
from srpo_core.plan.rollouts import num_pairs
from srpo_core.plan.traffic import gathers_of, seconds_of_a_gather
from srpo_core.training.steps import checkpoint_steps


@dataclass(frozen=True)
class Generated:
    """Images: how many, on how many devices in parallel, in how many hours."""

    num_images: int
    devices: int
    hours: float


def flops_of_a_call(case: Case) -> float:
    """FLOPs of the transformer for one image of the model's size and one step."""
    return case.counts.velocity[False].flops


def seconds_of_an_image(case: Case) -> float:
    """Time to generate an image of select, evaluate or quantize on one device, in batches."""
    generate, cluster = case.settings.generate, case.cluster
    decode = cluster.seconds(case.counts.decode[generate.autocast].flops, half=generate.autocast)
    return generate.num_inference_steps * _seconds_of_a_call(case, half=generate.autocast) + decode


def _seconds_of_a_call(case: Case, *, half: bool) -> float:
    """Time of one step of an image outside of training, in batches."""
    cluster = case.cluster
    call = cluster.seconds(flops_of_a_call(case), half=half)
    if case.settings.resources.offload:  # each call of a batch copies all weights, while it computes
        width = 2 if half else 4
        call = max(call, width * case.base / cluster.host / case.settings.generate.batch_size)
    return call


def pairs(case: Case) -> Generated:
    """The pairs that the stage rollouts generates if no earlier run had them, in the precision of training."""
    train, settings = case.settings.train, case.settings
    devices, count = min(settings.resources.generate_workers, case.cluster.gpus), num_pairs(train)
    seconds = train.rollout.num_inference_steps * _seconds_of_a_call(case, half=case.half)
    return Generated(count, devices, math.ceil(count / devices) * seconds / 3600)


def samples(case: Case) -> Generated:
    """The sample images at the checkpoints, which the devices share."""
    train = case.settings.train
    times, steps = len(checkpoint_steps(train)), train.rollout.num_inference_steps
    images, gather = math.ceil(train.sample_prompts / case.cluster.gpus), seconds_of_a_gather(case)
    gathers = math.ceil(images / case.at_once) * gathers_of(case, steps)
    seconds = images * _seconds_in_training(case, steps) + gathers * gather
    return Generated(times * train.sample_prompts, case.cluster.gpus, times * seconds / 3600)


def watched(case: Case) -> Mapping[str, Generated]:
    """What early stop generates while training runs: images of the checkpoints, and once those of the base."""
    train = case.settings.train
    if (rule := train.early_stop) is None:
        return {}
    gpus = case.cluster.gpus
    seconds = _seconds_in_training(case, rule.num_inference_steps)
    gather = gathers_of(case, rule.num_inference_steps) * seconds_of_a_gather(case)
    counts = {
        "at the checkpoints": (len(checkpoint_steps(train)), rule.seeds_per_prompt),
        "of the base, once": (1, rule.base_seeds),
    }
    return {
        what: Generated(
            num_images=times * rule.num_prompts * seeds,
            devices=gpus,
            hours=times * (images * seconds + math.ceil(images / case.at_once) * gather) / 3600,
        )
        for what, (times, seeds) in counts.items()
        if (images := math.ceil(rule.num_prompts * seeds / gpus))
    }


def generated(case: Case) -> Mapping[str, Generated]:
    """What select, evaluate and quantize generate, for every model and format in the settings."""
    settings = case.settings
    models = num_models(case)
    of_each = {
        "select": settings.select.num_prompts
        * settings.select.seeds_per_prompt,  # if no checkpoint is dropped
        "evaluate": settings.evaluate.num_prompts * settings.evaluate.seeds_per_prompt,
        "quantize": settings.quantize.num_prompts,
    }
    several = min(settings.resources.generate_workers, case.cluster.gpus)
    devices = {"select": several, "evaluate": several, "quantize": 1}
    return {
        stage: Generated(
            num_images=(images := models[stage] * of_each[stage]),
            devices=devices[stage],
            hours=math.ceil(images / devices[stage]) * seconds_of_an_image(case) / 3600,
        )
        for stage in models
    }


def num_models(case: Case) -> Mapping[str, int]:
    """Number of models, or formats, with which a stage generates images."""
    settings = case.settings
    return {
        "select": 1 + len(checkpoint_steps(settings.train)),
        "evaluate": 2 if settings.champion is None else 3,
        "quantize": len(settings.quantize.formats),
    }


def _seconds_in_training(case: Case, steps: int) -> float:
    """Time to generate one image in the precision of training, without gathering."""
    flops = steps * flops_of_a_call(case) + case.counts.decode[case.half].flops
    return case.cluster.seconds(flops, half=case.half)
