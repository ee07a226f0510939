"""Making a plan: build the models on the meta device, measure their sizes, count their calls."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from srpo_core.config import Settings
from srpo_core.errors import ConfigError
from srpo_core.plan.case import Case, Counts, Sizes, cost_of_method
from srpo_core.plan.cluster import Cluster
from srpo_core.plan.counting import Forward, count_call, count_forward
from srpo_core.plan.estimates import Plan
from srpo_core.plan.parts import MetaParts, meta_encoders, meta_parts
from srpo_core.training.micro_batches import images_per_call

# settings of training that change how often something happens, what is kept beside the weights, or nothing on the meta device
NOT_COUNTED: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **dict.fromkeys(("steps", "batch_size", "micro_batch_size", "checkpoint_every"), True),
        **dict.fromkeys(("sample_prompts", "early_stop", "optimizer", "ema"), True),
        "compute": {"gather_rollout", "compile", "attention", "tf32", "fused_optimizer"},
        "lora": {"alpha", "frozen"},
    }
)


class Counter:
    """Makes plans. Models that differ in nothing that is counted are counted once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Sizes, Counts]] = {}
        self._encoded: dict[str, Forward] = {}

    def plan(self, settings: Settings, cluster: Cluster) -> Plan:
        """Plan a run with these settings on a cluster. Raises as `make_plan`."""
        train = settings.train
        if cluster.gpus > train.batch_size:
            raise ConfigError(
                f"{cluster.gpus} GPUs are more than train.batch_size {train.batch_size}: every GPU needs an image"
            )
        key = _counted_settings(settings, cluster)
        if key not in self._known:
            parts = meta_parts(settings)
            self._known[key] = _sizes(parts), _count(parts, settings, cluster, self._encode(settings))
        sizes, counts = self._known[key]
        return Plan(Case(settings, cluster, sizes, replace(counts, encode=self._encode(settings))))

    def _encode(self, settings: Settings) -> Forward:
        """Count a call of the text encoders, on which nothing else depends."""
        batch_size = settings.resources.encode_batch_size
        key = json.dumps([settings.model.model_dump(mode="json"), batch_size])
        if key not in self._encoded:
            encoders = meta_encoders(settings.model)

            def encode() -> None:
                for encoder in encoders:
                    encoder.encode(batch_size)

            self._encoded[key] = count_forward(encode, autocast=False)
        return self._encoded[key]


def make_plan(settings: Settings, cluster: Cluster) -> Plan:
    """Plan a run with these settings on a cluster, counted on the meta device; every step at the largest of the buckets.

    Raises:
        ConfigError: more GPUs than images in a batch, or an unknown method.
    """
    return Counter().plan(settings, cluster)


def _counted_settings(settings: Settings, cluster: Cluster) -> str:
    """Return the settings on which sizes and counts depend, as JSON."""
    train = settings.train.model_dump(mode="json", exclude=dict(NOT_COUNTED))
    return json.dumps(
        [
            settings.model.model_dump(mode="json"),
            [reward.model_dump(mode="json") for reward in settings.rewards],
            train,
            settings.train.lora.frozen == "float32",  # otherwise computed in bfloat16, also from 4 bits
            images_per_call(settings.train, cluster.gpus),
            settings.resources.shard,
            settings.generate.autocast,
            settings.generate.decode,
        ]
    )


def _sizes(parts: MetaParts) -> Sizes:
    from srpo_core.models.four_bit import bytes_in_four_bits, matrices_of_blocks
    from srpo_core.models.offloading import pinned_size
    from srpo_core.models.sharding import blocks

    transformer = parts.model.transformer
    largest = max(blocks(transformer), key=_parameters)
    frozen = [
        one for block in blocks(transformer) for name, one in block.named_parameters() if ".lora_" not in name
    ]
    matrices = [one.numel() for one in matrices_of_blocks(transformer) if not one.requires_grad]
    return Sizes(
        all=_parameters(transformer),
        trained=_parameters(transformer, trained=True),
        block=_parameters(largest),
        trained_of_block=_parameters(largest, trained=True),
        rest=_parameters(transformer) - sum(map(_parameters, blocks(transformer))),
        pinned=sum(pinned_size(one.numel()) for one in frozen),
        vae=_parameters(parts.model.vae),
        reward=_parameters(parts.reward),
        encoders=sum(_parameters(encoder.module) for encoder in parts.encoders),
        matrices=sum(matrices),
        in_four_bits=sum(map(bytes_in_four_bits, matrices)),
        largest_matrix=max(matrices, default=0),
    )


def _count(parts: MetaParts, settings: Settings, cluster: Cluster, encoded: Forward) -> Counts:
    """Count generation first, because training casts the weights to the type in which they are gathered.

    encoded: a call of the text encoders.
    """
    import torch

    train, model = settings.train, parts.model
    half = train.compute.autocast
    generate = settings.generate
    velocity = {
        kind: count_forward(_velocity(parts), autocast=kind) for kind in {half, generate.autocast, False}
    }
    decode = {kind: count_forward(_decode(parts), autocast=kind) for kind in {half, generate.autocast}}
    in_parts = decode[generate.autocast]
    if generate.decode != "whole":
        model.decode_in(generate.decode)
        in_parts = count_forward(_decode(parts), autocast=generate.autocast)
        model.decode_in("whole")
    shape = (1, 3, settings.model.height, settings.model.width)
    score = count_forward(lambda: parts.reward.score(torch.empty(shape, device="meta"), [""]), autocast=False)
    if settings.resources.shard and half:
        model.transformer.bfloat16()  # the type in which it is gathered
    elif train.tune == "lora" and train.lora.frozen != "float32":
        for parameter in model.transformer.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    at_once = cost_of_method(train).images_per_call * images_per_call(train, cluster.gpus)
    largest = max(train.buckets, key=math.prod) if train.buckets else None
    with model.sized(*largest) if largest else nullcontext():
        call = count_call(model, parts.reward, parts.condition, num_images=at_once, autocast=half)
    return Counts(call, velocity, decode, in_parts, encoded, score)


def _velocity(parts: MetaParts) -> Callable[[], Any]:
    """Return one transformer call for one image."""
    import torch

    with torch.device("meta"):
        latents, time = torch.empty(1, *parts.model.latent_shape), torch.empty(1)
    return lambda: parts.model.velocity(latents, time, 1.0, parts.condition)


def _decode(parts: MetaParts) -> Callable[[], Any]:
    """Return the decoder's call for one image."""
    import torch

    latents = torch.empty(1, *parts.model.latent_shape, device="meta")
    return lambda: parts.model.decode(latents)


def _parameters(module: Any, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)
