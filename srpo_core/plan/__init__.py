"""What a run needs on a cluster, before it is started: bytes, FLOPs, time and money, from the settings alone."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.method import MethodCost
from srpo_core.algorithm.rollout import real_share
from srpo_core.config import GenerateSettings, Settings, TrainSettings
from srpo_core.errors import ConfigError, pick
from srpo_core.plan.counting import Counted, count_call, count_generation
from srpo_core.plan.parts import MetaParts, meta_parts
from srpo_core.training.steps import checkpoint_steps

GB: Final = 1e9
TERA: Final = 1e12
CONTEXT_BYTES: Final = 2e9  # what a CUDA context, its libraries and NCCL take; an allowance, not measured
FLOPS_OF_ADAMW: Final = 20  # per parameter
FLOAT32_SPEED: Final = 1 / 15  # of bfloat16's: A100 19.5 / 312, H100 67 / 989 TFLOP/s, dense


@dataclass(frozen=True)
class Cluster:
    """The machine that a plan is for.

    gpus: devices, one per worker; memory: bytes of each; price: of one GPU hour; mfu: share of `peak_flops` (per
    second, bfloat16) that training reaches; bandwidth: bytes per second of one device to the others.
    """

    gpus: int
    memory: float
    price: float | None
    mfu: float
    peak_flops: float
    bandwidth: float


@dataclass(frozen=True)
class Sizes:
    """Elements of the transformer, and the bytes of what is frozen beside it.

    trained_of_block: what is trained of the largest block; rest: what lies outside of the blocks; frozen: VAE and
    reward, in bytes; reward: the latter alone; drawn: bytes that pass while a batch is drawn and decoded.
    """

    all: int
    trained: int
    block: int
    trained_of_block: int
    rest: int
    frozen: int
    reward: int
    generated: int


@dataclass(frozen=True)
class Generated:
    """What a stage generates: how many images, on how many devices at once, in how many hours."""

    num_images: int
    devices: int
    hours: float


@dataclass(frozen=True)
class Plan:
    """The figures of a run on a cluster, per device where nothing else is said."""

    settings: Settings
    cluster: Cluster
    sizes: Sizes
    counted: Counted

    @property
    def images(self) -> int:
        """Images per step on the device that has most."""
        return math.ceil(self.settings.train.batch_size / self.cluster.gpus)

    @property
    def cost_of_method(self) -> MethodCost:
        """The model calls of a step per image, by the method that is trained."""
        return _cost_of_method(self.settings.train)

    @property
    def _shards(self) -> int:
        return self.cluster.gpus if self.settings.resources.shard else 1

    @cached_property
    def memory(self) -> Mapping[str, float]:
        """Bytes by part, at the fullest moment of a step."""
        train, sizes, counted = self.settings.train, self.sizes, self.counted
        kept = {
            "activations, transformer": counted.transformer.kept,
            "activations, decoder": counted.decode.kept,
            "activations, reward": counted.reward.kept,
        }
        early, late = counted.peak_before + self._kept_gathered, counted.peak_after + self._gathered
        gathered, peak = self._kept_gathered, counted.peak_before
        if late > early:  # decoder and reward are done by then
            gathered, peak = self._gathered, counted.peak_after
            kept = {"activations, transformer": counted.transformer.kept}
        frozen = (sizes.all - sizes.trained) * (2 if _frozen_in_half(train) else 4)
        return {
            "parameters": (4 * sizes.trained + frozen) / self._shards,
            "gradients": 4 * sizes.trained / self._shards,
            "optimizer": 8 * sizes.trained / self._shards,
            "gathered weights": gathered,
            "copy for rollouts": 2.0 * sizes.all if train.compute.rollout_copy else 0.0,
            "VAE and reward": sizes.frozen,
            **kept,
            "passing tensors": peak - sum(kept.values()),
            "device's own": CONTEXT_BYTES if self.settings.resources.use_gpu else 0.0,
        }

    @property
    def _gathered(self) -> float:
        """One block that is computed and the next one on its way, what lies outside of blocks, one block's gradients."""
        if self._shards == 1:
            return 0.0
        width = 2 if self.settings.train.compute.autocast else 4
        sizes = self.sizes
        return width * (2 * sizes.block + sizes.rest) + 4 * sizes.trained_of_block

    @property
    def _kept_gathered(self) -> float:
        """What lies outside of the blocks stays gathered between a call's way there and its way back."""
        width = 2 if self.settings.train.compute.autocast else 4
        return 0.0 if self._shards == 1 else width * self.sizes.rest

    @property
    def generation(self) -> Mapping[str, float]:
        """Bytes by part of a device that draws for evaluate, by one model after the other, whatever was trained.

        Judge and scorers are known by name only: each is taken to be as large as the reward.
        """
        settings = self.settings
        others = {settings.judge.path, *(scorer.path for scorer in settings.evaluate.scorers.values())}
        return {
            "parameters": 4.0 * self.sizes.all,
            "VAE and reward": self.sizes.frozen,
            "judge and scorers": len(others - {settings.reward.path}) * self.sizes.reward,
            "passing tensors": self.sizes.generated,
            "device's own": CONTEXT_BYTES if settings.resources.use_gpu else 0.0,
        }

    @property
    def peak(self) -> float:
        """Bytes at the fullest moment."""
        return sum(self.memory.values())

    @property
    def state(self) -> float:
        """Bytes of parameters, gradients and optimizer."""
        return sum(self.memory[part] for part in ("parameters", "gradients", "optimizer"))

    @property
    def fits(self) -> bool:
        """Whether a device holds it."""
        return self.peak <= self.cluster.memory

    @cached_property
    def flops(self) -> Mapping[str, float]:
        """FLOPs of one step by phase."""
        counted, cost = self.counted, self.cost_of_method
        samples = self.images / counted.num_images
        rolled_out = samples * (1 - real_share(self.settings.train.rollout))
        recomputed = cost.recomputed_calls * counted.rollout.flops
        return {
            "rollout": cost.rollout_calls * rolled_out * counted.rollout.flops,
            "transformer": samples * (cost.trained_calls * counted.transformer.flops + recomputed),
            "decoder": samples * cost.scored_images * counted.decode.flops,
            "reward": samples * cost.scored_images * counted.reward.flops,
            "optimizer": FLOPS_OF_ADAMW * self.sizes.trained / self._shards,
        }

    @property
    def traffic(self) -> float:
        """Bytes that a device exchanges in one step."""
        train, sizes, n = self.settings.train, self.sizes, self.cluster.gpus
        share = (n - 1) / n
        if self._shards == 1:
            return 2 * share * 4 * sizes.trained
        width = 2 if train.compute.autocast else 4
        cost = self.cost_of_method
        calls = cost.trained_calls // cost.images_per_call
        rollouts = cost.rollout_calls if real_share(train.rollout) < 1 else 0
        forwards = 1 if train.compute.rollout_copy else rollouts  # the copy is filled once a step
        gathers = forwards + 2 * calls + cost.recomputed_calls
        return share * (gathers * width * sizes.all + calls * 4 * sizes.trained)

    @property
    def compute_seconds(self) -> float:
        """Time of a step's FLOPs at the stated share of the device's peak."""
        return sum(self.flops.values()) / (self.cluster.mfu * self.cluster.peak_flops)

    @property
    def traffic_seconds(self) -> float:
        """Time of a step's traffic if none of it is hidden behind computing."""
        return self.traffic / self.cluster.bandwidth

    @property
    def hours(self) -> float:
        """Of training, with no traffic hidden; without drawing samples and writing checkpoints."""
        return self.settings.train.steps * (self.compute_seconds + self.traffic_seconds) / 3600

    @property
    def flops_of_an_image(self) -> float:
        """FLOPs of the model's calls that draw one image; decoder and scorers are a few in a hundred of them."""
        return (
            self.settings.generate.num_inference_steps * self.counted.rollout.flops / self.counted.num_images
        )

    @property
    def seconds_of_an_image(self) -> float:
        """Time of drawing one on one device."""
        speed = 1 if self.settings.generate.autocast else FLOAT32_SPEED
        return self.flops_of_an_image / (speed * self.cluster.mfu * self.cluster.peak_flops)

    @cached_property
    def generated(self) -> Mapping[str, Generated]:
        """What select, evaluate and quantize draw, with every model and format that the settings name."""
        settings = self.settings
        models = {
            "select": 1 + len(checkpoint_steps(settings.train)),
            "evaluate": 2 if settings.champion is None else 3,
            "quantize": len(settings.quantize.formats),
        }
        of_each = {
            "select": settings.select.num_prompts * settings.select.seeds_per_prompt,
            "evaluate": settings.evaluate.num_prompts * settings.evaluate.seeds_per_prompt,
            "quantize": settings.quantize.num_prompts,
        }
        several = min(settings.resources.generate_workers, self.cluster.gpus)
        devices = {"select": several, "evaluate": several, "quantize": 1}
        return {
            stage: Generated(
                num_images=(images := models[stage] * of_each[stage]),
                devices=devices[stage],
                hours=math.ceil(images / devices[stage]) * self.seconds_of_an_image / 3600,
            )
            for stage in models
        }

    @property
    def device_hours(self) -> float:
        """Of training and of all images that the later stages draw."""
        generation = sum(draws.hours * draws.devices for draws in self.generated.values())
        return self.hours * self.cluster.gpus + generation

    @property
    def cost(self) -> float | None:
        """Of training and drawing, if a GPU hour has a price."""
        price = self.cluster.price
        return None if price is None else price * self.device_hours


def make_plan(settings: Settings, cluster: Cluster) -> Plan:
    """Plan a run of these settings on a cluster; everything is counted on the meta device.

    Raises:
        ConfigError: more GPUs than images in a batch, or an unknown method.
    """
    train = settings.train
    if cluster.gpus > train.batch_size:
        raise ConfigError(
            f"{cluster.gpus} GPUs are more than train.batch_size {train.batch_size}: every one needs an image"
        )
    parts = meta_parts(settings)
    sizes = _sizes(parts, settings.generate)
    if settings.resources.shard and train.compute.autocast:
        parts.model.transformer.bfloat16()  # as it is gathered
    images = _cost_of_method(train).images_per_call * math.ceil(train.batch_size / cluster.gpus)
    counted = count_call(
        parts.model, parts.reward, parts.condition, num_images=images, autocast=train.compute.autocast
    )
    return Plan(settings, cluster, sizes, counted)


def changed(settings: Settings, change: Callable[[TrainSettings], TrainSettings]) -> Settings:
    """The settings with another part `train`."""
    return settings.model_copy(update={"train": change(settings.train)})


def remedies(settings: Settings, cluster: Cluster) -> tuple[list[str], Plan]:
    """Changes, from the cheapest on, that make a run fit which does not; all of them if nothing does.

    Returns what to set, and the plan with it.
    """
    done: list[str] = []
    plan = make_plan(settings, cluster)
    for what, change in REMEDIES.items():
        if plan.fits:
            break
        other = change(settings)
        if other == settings:
            continue
        better = make_plan(other, cluster)
        if better.peak < plan.peak:
            settings, plan = other, better
            done.append(what)
    return done, plan


def _compute(**changes: float | bool) -> Callable[[Settings], Settings]:
    def change(settings: Settings) -> Settings:
        return changed(
            settings,
            lambda train: train.model_copy(update={"compute": train.compute.model_copy(update=changes)}),
        )

    return change


def _branch_by_branch(settings: Settings) -> Settings:
    return changed(settings, lambda train: train.model_copy(update={"batch_branches": False}))


def _sharded(settings: Settings) -> Settings:
    return settings.model_copy(update={"resources": settings.resources.model_copy(update={"shard": True})})


def _by_lora(settings: Settings) -> Settings:
    def change(train: TrainSettings) -> TrainSettings:
        frozen = "bfloat16" if train.compute.autocast else train.lora.frozen
        return train.model_copy(
            update={"tune": "lora", "lora": train.lora.model_copy(update={"frozen": frozen})}
        )

    return changed(settings, change)


REMEDIES: Final[Mapping[str, Callable[[Settings], Settings]]] = MappingProxyType(
    {
        "train.batch_branches=false": _branch_by_branch,
        "train.compute.checkpoint_decode=true": _compute(checkpoint_decode=True),
        "train.compute.rollout_copy=false": _compute(rollout_copy=False),
        "train.compute.checkpoint_blocks=1.0": _compute(checkpoint_blocks=1.0),
        "resources.shard=true": _sharded,
        "train.compute.autocast=true": _compute(autocast=True),
        "train.tune=lora": _by_lora,
    }
)


def _cost_of_method(train: TrainSettings) -> MethodCost:
    return pick(METHODS, train.method, "method").cost(train)


def _frozen_in_half(train: TrainSettings) -> bool:
    return train.tune == "lora" and train.lora.frozen == "bfloat16"


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
