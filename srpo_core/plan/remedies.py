"""Changes of the settings that reduce the memory of a run, from the cheapest to the most expensive."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.config import Settings, TrainSettings
from srpo_core.plan.cluster import Cluster
from srpo_core.plan.estimates import Plan
from srpo_core.plan.making import Counter


def changed(settings: Settings, change: Callable[[TrainSettings], TrainSettings]) -> Settings:
    """Change the part `train` of the settings."""
    return settings.model_copy(update={"train": change(settings.train)})


def remedies(
    settings: Settings, cluster: Cluster, *, counter: Counter | None = None
) -> tuple[list[str], Plan]:
    """Find changes that make every stage of a run fit, cheapest first; all that help if none suffices.

    counter: has counted some calls before. Returns the settings to change and the plan with these changes.
    """
    done: list[str] = []
    counter = counter or Counter()
    plan = counter.plan(settings, cluster)
    for what, change in REMEDIES.items():
        if plan.fits:
            break
        other = change(settings)
        if other == settings:
            continue
        better = counter.plan(other, cluster)
        if better.excess < plan.excess:
            settings, plan = other, better
            done.append(what)
    return done, plan


def _resources(**changes: int | bool) -> Callable[[Settings], Settings]:
    def change(settings: Settings) -> Settings:
        return settings.model_copy(update={"resources": settings.resources.model_copy(update=changes)})

    return change


def _sharded(settings: Settings) -> Settings:
    """Shard the model, unless `require_consistent` refuses that."""
    train = settings.train
    in_four_bits = train.tune == "lora" and train.lora.frozen == "nf4"
    if in_four_bits or train.optimizer.kind == "adamw_8bit" or train.rollout.source == "hybrid":
        return settings
    return _resources(shard=True)(settings)


def _in_8_bits(settings: Settings) -> Settings:
    if settings.resources.shard:  # cannot be sharded
        return settings
    return changed(
        settings,
        lambda train: train.model_copy(
            update={"optimizer": train.optimizer.model_copy(update={"kind": "adamw_8bit"})}
        ),
    )


def _generate(**changes: int | bool | str) -> Callable[[Settings], Settings]:
    def change(settings: Settings) -> Settings:
        return settings.model_copy(update={"generate": settings.generate.model_copy(update=changes)})

    return change


def _in_slices(settings: Settings) -> Settings:
    """Decode slices instead of whole batches; tiles need less memory already."""
    return _generate(decode="slices")(settings) if settings.generate.decode == "whole" else settings


def _train(**changes: object) -> Callable[[Settings], Settings]:
    return lambda settings: changed(settings, lambda train: train.model_copy(update=changes))


def _cached(**changes: int) -> Callable[[Settings], Settings]:
    def change(settings: Settings) -> Settings:
        rollout = settings.train.rollout
        if rollout.source != "cached":
            return settings
        cached = rollout.cached.model_copy(update=changes)
        return _train(rollout=rollout.model_copy(update={"cached": cached}))(settings)

    return change


def _compute(**changes: float | bool) -> Callable[[Settings], Settings]:
    def change(settings: Settings) -> Settings:
        return changed(
            settings,
            lambda train: train.model_copy(update={"compute": train.compute.model_copy(update=changes)}),
        )

    return change


def _by_lora(settings: Settings) -> Settings:
    def change(train: TrainSettings) -> TrainSettings:
        frozen = "bfloat16" if train.compute.autocast else train.lora.frozen
        return train.model_copy(
            update={"tune": "lora", "lora": train.lora.model_copy(update={"frozen": frozen})}
        )

    return changed(settings, change)


def _in_4_bits(settings: Settings) -> Settings:
    train = settings.train
    if settings.resources.shard or train.tune != "lora" or not train.compute.autocast:
        return settings
    lora = train.lora.model_copy(update={"frozen": "nf4"})
    return _train(lora=lora)(settings)


REMEDIES: Final[Mapping[str, Callable[[Settings], Settings]]] = MappingProxyType(
    {
        "resources.encode_batch_size=4": _resources(encode_batch_size=4),
        "generate.batch_size=1": _generate(batch_size=1),
        "train.rollout.cached.batch_size=1": _cached(batch_size=1),
        "generate.decode=slices": _in_slices,
        "generate.decode=tiles": _generate(decode="tiles"),
        "generate.autocast=true": _generate(autocast=True),
        "resources.offload=true": _resources(offload=True),
        "train.batch_branches=false": _train(batch_branches=False),
        "train.micro_batch_size=1": _train(micro_batch_size=1),
        "train.compute.checkpoint_decode=true": _compute(checkpoint_decode=True),
        "train.compute.gather_rollout=false": _compute(gather_rollout=False),
        "train.compute.checkpoint_blocks=1.0": _compute(checkpoint_blocks=1.0),
        "resources.shard=true": _sharded,
        "train.compute.autocast=true": _compute(autocast=True),
        "train.tune=lora": _by_lora,
        "train.lora.frozen=nf4": _in_4_bits,
        "train.optimizer.kind=adamw_8bit": _in_8_bits,
        "train.early_stop=null": _train(early_stop=None),
    }
)
