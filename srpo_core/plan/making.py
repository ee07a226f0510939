"""Making a plan: build the models on the meta device, measure their sizes, count their calls."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from srpo_core.config import Settings
from srpo_core.errors import ConfigError
from srpo_core.plan.case import Case, Counts, Sizes, cost_of_method
from srpo_core.plan.cluster import Cluster
from srpo_core.plan.counting import count_call, count_forward
from srpo_core.plan.estimates import Plan
from srpo_core.plan.parts import MetaParts, meta_parts
from srpo_core.training.micro_batches import images_per_call


def make_plan(settings: Settings, cluster: Cluster) -> Plan:
    """Plan a run with these settings on a cluster, counted on the meta device; every step at the largest of the buckets.

    Raises:
        ConfigError: more GPUs than images in a batch, or an unknown method.
    """
    train = settings.train
    if cluster.gpus > train.batch_size:
        raise ConfigError(
            f"{cluster.gpus} GPUs are more than train.batch_size {train.batch_size}: every GPU needs an image"
        )
    parts = meta_parts(settings)
    return Plan(Case(settings, cluster, _sizes(parts), _count(parts, settings, cluster)))


def _sizes(parts: MetaParts) -> Sizes:
    from srpo_core.models.sharding import blocks

    transformer = parts.model.transformer
    largest = max(blocks(transformer), key=_parameters)
    return Sizes(
        all=_parameters(transformer),
        trained=_parameters(transformer, trained=True),
        block=_parameters(largest),
        trained_of_block=_parameters(largest, trained=True),
        rest=_parameters(transformer) - sum(map(_parameters, blocks(transformer))),
        vae=_parameters(parts.model.vae),
        reward=_parameters(parts.reward),
        encoders=sum(_parameters(encoder.module) for encoder in parts.encoders),
    )


def _count(parts: MetaParts, settings: Settings, cluster: Cluster) -> Counts:
    """Count generation first, because training casts the weights to the type in which they are gathered."""
    import torch

    train, model = settings.train, parts.model

    def encode() -> None:
        for encoder in parts.encoders:
            encoder.encode(settings.resources.encode_batch_size)

    half = train.compute.autocast
    image = {
        kind: count_forward(_generation(parts, decode=True), autocast=kind)
        for kind in {half, settings.generate.autocast}
    }
    velocity = count_forward(_generation(parts, decode=False), autocast=False)
    shape = (1, 3, settings.model.height, settings.model.width)
    score = count_forward(lambda: parts.reward.score(torch.empty(shape, device="meta"), [""]), autocast=False)
    encoded = count_forward(encode, autocast=False)
    if settings.resources.shard and half:
        model.transformer.bfloat16()  # the type in which it is gathered
    at_once = cost_of_method(train).images_per_call * images_per_call(train, cluster.gpus)
    largest = max(train.buckets, key=math.prod) if train.buckets else None
    with model.sized(*largest) if largest else nullcontext():
        call = count_call(model, parts.reward, parts.condition, num_images=at_once, autocast=half)
    return Counts(call, image, velocity, encoded, score)


def _generation(parts: MetaParts, *, decode: bool) -> Callable[[], None]:
    """Return one transformer call for one image, and the decoder if asked for."""
    import torch

    model = parts.model
    with torch.device("meta"):
        latents, time = torch.empty(1, *model.latent_shape), torch.empty(1)

    def call() -> None:
        model.velocity(latents, time, 1.0, parts.condition)
        if decode:
            model.decode(latents)

    return call


def _parameters(module: Any, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
