"""Making a plan: build the models on the meta device, measure their sizes, count a training call."""

from srpo_core.config import GenerateSettings, Settings
from srpo_core.errors import ConfigError
from srpo_core.plan.counting import count_call, count_generation
from srpo_core.plan.estimates import Cluster, Plan, Sizes, cost_of_method
from srpo_core.plan.parts import MetaParts, meta_parts
from srpo_core.training.micro_batches import images_per_call


def make_plan(settings: Settings, cluster: Cluster) -> Plan:
    """Plan a run with these settings on a cluster, counted on the meta device.

    Raises:
        ConfigError: more GPUs than images in a batch, or an unknown method.
    """
    train = settings.train
    if cluster.gpus > train.batch_size:
        raise ConfigError(
            f"{cluster.gpus} GPUs are more than train.batch_size {train.batch_size}: every GPU needs an image"
        )
    parts = meta_parts(settings)
    sizes = _sizes(parts, settings.generate)
    if settings.resources.shard and train.compute.autocast:
        parts.model.transformer.bfloat16()  # the type in which it is gathered
    images = cost_of_method(train).images_per_call * images_per_call(train, cluster.gpus)
    counted = count_call(
        parts.model, parts.reward, parts.condition, num_images=images, autocast=train.compute.autocast
    )
    return Plan(settings, cluster, sizes, counted)


def _sizes(parts: MetaParts, generate: GenerateSettings) -> Sizes:
    from srpo_core.models.sharding import blocks

    transformer = parts.model.transformer
    largest = max(blocks(transformer), key=_count)
    inside = sum(map(_count, blocks(transformer)))
    return Sizes(
        all=_count(transformer),
        trained=_count(transformer, trained=True),
        block=_count(largest),
        trained_of_block=_count(largest, trained=True),
        rest=_count(transformer) - inside,
        frozen=4 * (_count(parts.model.vae) + parts.reward_parameters),
        reward=4 * parts.reward_parameters,
        generated=count_generation(
            parts.model, parts.condition, num_images=generate.batch_size, autocast=generate.autocast
        ),
    )


def _count(module: object, *, trained: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)  # type: ignore[attr-defined]
