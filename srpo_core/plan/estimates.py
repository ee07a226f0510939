"""The figures of a plan: memory, FLOPs, traffic, time and money, by arithmetic from sizes and counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.method import MethodCost
from srpo_core.algorithm.rollout import real_share
from srpo_core.config import Settings, TrainSettings
from srpo_core.errors import pick
from srpo_core.plan.counting import Counted
from srpo_core.training.micro_batches import images_per_call, largest_share, num_micro_batches
from srpo_core.training.steps import checkpoint_steps

GB: Final = 1e9
TERA: Final = 1e12
CONTEXT_BYTES: Final = 2e9  # CUDA context, its libraries and NCCL; an allowance, not measured
FLOPS_OF_ADAMW: Final = 20  # per parameter
# per parameter; bitsandbytes has a scale in float32 for each moment of a block of 256 values
BYTES_OF_MOMENTS: Final[Mapping[str, float]] = MappingProxyType({"adamw": 8, "adamw_8bit": 2 + 8 / 256})
FLOAT32_SPEED: Final = 1 / 15  # relative to bfloat16: A100 19.5 / 312, H100 67 / 989 TFLOP/s, dense


@dataclass(frozen=True)
class Cluster:
    """The hardware that a plan is for.

    gpus: number of devices, one per worker; memory: bytes of each; price: of one GPU hour; mfu: share of `peak_flops`
    (FLOP/s in bfloat16) that training reaches; bandwidth: bytes per second from one device to the others.
    """

    gpus: int
    memory: float
    price: float | None
    mfu: float
    peak_flops: float
    bandwidth: float


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models.

    all, trained, block, trained_of_block, rest: parameters of the whole transformer, of its trained part, of its
    largest block, of the trained part of that block, and outside of the blocks. frozen, reward, generated: bytes of VAE
    and reward, of the reward alone, and of the tensors that are alive while a batch is generated and decoded.
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
    """The images of a stage: how many, on how many devices in parallel, in how many hours."""

    num_images: int
    devices: int
    hours: float


@dataclass(frozen=True)
class Plan:
    """The figures of a run on a cluster, per device unless stated otherwise."""

    settings: Settings
    cluster: Cluster
    sizes: Sizes
    counted: Counted

    @property
    def images(self) -> int:
        """Images per step on the device that has the most."""
        return largest_share(self.settings.train, self.cluster.gpus)

    @property
    def micro_batches(self) -> int:
        """Parts in which a device computes its images of a step."""
        return num_micro_batches(self.settings.train, self.cluster.gpus)

    @property
    def cost_of_method(self) -> MethodCost:
        """The model calls of a step per image, for the trained method."""
        return cost_of_method(self.settings.train)

    @property
    def _shards(self) -> int:
        return self.cluster.gpus if self.settings.resources.shard else 1

    @cached_property
    def memory(self) -> Mapping[str, float]:
        """Bytes by part at the peak of a step."""
        train, sizes, counted = self.settings.train, self.sizes, self.counted
        kept = {
            "activations, transformer": counted.transformer.kept,
            "activations, decoder": counted.decode.kept,
            "activations, reward": counted.reward.kept,
        }
        early, late = counted.peak_before + self._kept_gathered, counted.peak_after + self._gathered
        gathered, peak = self._kept_gathered, counted.peak_before
        if late > early:  # at that peak, decoder and reward are done
            gathered, peak = self._gathered, counted.peak_after
            kept = {"activations, transformer": counted.transformer.kept}
        frozen = (sizes.all - sizes.trained) * (2 if _frozen_in_half(train) else 4)
        return {
            "parameters": (4 * sizes.trained + frozen) / self._shards,
            "gradients": 4 * sizes.trained / self._shards,
            "optimizer": BYTES_OF_MOMENTS[train.optimizer.kind] * sizes.trained / self._shards,
            "moving averages": 4.0 * sizes.trained / self._shards if train.ema else 0.0,
            "gathered weights": gathered,
            "copy for rollouts": 2.0 * sizes.all if train.compute.rollout_copy else 0.0,
            "VAE and reward": sizes.frozen,
            **kept,
            "passing tensors": peak - sum(kept.values()),
            "device's own": CONTEXT_BYTES if self.settings.resources.use_gpu else 0.0,
        }

    @property
    def _gathered(self) -> float:
        """Bytes gathered for computing: two blocks (current and prefetched), the rest, one block's gradients."""
        if self._shards == 1:
            return 0.0
        width = 2 if self.settings.train.compute.autocast else 4
        sizes = self.sizes
        return width * (2 * sizes.block + sizes.rest) + 4 * sizes.trained_of_block

    @property
    def _kept_gathered(self) -> float:
        """Bytes that stay gathered between a forward and its backward pass: the parameters outside of the blocks."""
        width = 2 if self.settings.train.compute.autocast else 4
        return 0.0 if self._shards == 1 else width * self.sizes.rest

    @property
    def generation(self) -> Mapping[str, float]:
        """Bytes by part on a device that generates for evaluate, one model after the other, however it was trained.

        The architectures of judge and scorers are not read: each is assumed to be as large as the reward.
        """
        settings = self.settings
        others = {settings.judge.path, *(scorer.path for scorer in settings.evaluate.scorers.values())}
        return {
            "parameters": 4.0 * self.sizes.all,
            "VAE and reward": self.sizes.frozen,
            "judge and scorers": len(others - {one.path for one in settings.rewards}) * self.sizes.reward,
            "passing tensors": self.sizes.generated,
            "device's own": CONTEXT_BYTES if settings.resources.use_gpu else 0.0,
        }

    @property
    def peak(self) -> float:
        """Bytes at the peak of a step."""
        return sum(self.memory.values())

    @property
    def state(self) -> float:
        """Bytes of parameters, gradients and optimizer."""
        return sum(self.memory[part] for part in ("parameters", "gradients", "optimizer"))

    @property
    def fits(self) -> bool:
        """Whether the peak fits into a device's memory."""
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
        """Bytes that a device sends in one step."""
        train, sizes, n = self.settings.train, self.sizes, self.cluster.gpus
        share = (n - 1) / n
        if self._shards == 1:
            return 2 * share * 4 * sizes.trained
        width = 2 if train.compute.autocast else 4
        cost = self.cost_of_method
        calls = cost.trained_calls // cost.images_per_call
        rollouts = cost.rollout_calls if real_share(train.rollout) < 1 else 0
        forwards = 1 if train.compute.rollout_copy else rollouts  # the copy is filled once per step
        gathers = forwards + 2 * calls + cost.recomputed_calls
        return self.micro_batches * share * (gathers * width * sizes.all + calls * 4 * sizes.trained)

    @property
    def compute_seconds(self) -> float:
        """Time of a step's FLOPs at the given share of the device's peak."""
        return sum(self.flops.values()) / (self.cluster.mfu * self.cluster.peak_flops)

    @property
    def traffic_seconds(self) -> float:
        """Time of a step's traffic if none of it overlaps with computing."""
        return self.traffic / self.cluster.bandwidth

    @property
    def hours(self) -> float:
        """Hours of training if no traffic overlaps with computing, without samples and checkpoints."""
        return self.settings.train.steps * (self.compute_seconds + self.traffic_seconds) / 3600

    @property
    def flops_of_an_image(self) -> float:
        """FLOPs of the transformer's calls for one generated image; decoder and scorers add a few per cent."""
        return (
            self.settings.generate.num_inference_steps * self.counted.rollout.flops / self.counted.num_images
        )

    @property
    def seconds_of_an_image(self) -> float:
        """Time to generate an image on one device."""
        speed = 1 if self.settings.generate.autocast else FLOAT32_SPEED
        return self.flops_of_an_image / (speed * self.cluster.mfu * self.cluster.peak_flops)

    @property
    def watched(self) -> Mapping[str, Generated]:
        """What early stop generates while training runs: images of the checkpoints, and once those of the base."""
        train = self.settings.train
        if (rule := train.early_stop) is None:
            return {}
        gpus = self.cluster.gpus
        seconds = rule.num_inference_steps * self._seconds_of_a_call
        at_once = images_per_call(train, gpus)
        gather = rule.num_inference_steps * self._seconds_of_a_gather
        evaluations = len(checkpoint_steps(train))
        counts = {
            "at the checkpoints": (evaluations, rule.seeds_per_prompt),
            "of the base, once": (1, rule.base_seeds),
        }
        return {
            what: Generated(
                num_images=times * rule.num_prompts * seeds,
                devices=gpus,
                hours=times * (images * seconds + math.ceil(images / at_once) * gather) / 3600,
            )
            for what, (times, seeds) in counts.items()
            if (images := math.ceil(rule.num_prompts * seeds / gpus))
        }

    @property
    def _seconds_of_a_call(self) -> float:
        """Time of a forward pass without gradients for one image, in the precision of training."""
        speed = 1 if self.settings.train.compute.autocast else FLOAT32_SPEED
        flops = self.counted.rollout.flops / self.counted.num_images
        return flops / (speed * self.cluster.mfu * self.cluster.peak_flops)

    @property
    def _seconds_of_a_gather(self) -> float:
        """Time to gather all weights of a sharded model for a forward pass."""
        if self._shards == 1:
            return 0.0
        width = 2 if self.settings.train.compute.autocast else 4
        n = self.cluster.gpus
        return (n - 1) / n * width * self.sizes.all / self.cluster.bandwidth

    @cached_property
    def generated(self) -> Mapping[str, Generated]:
        """What select, evaluate and quantize generate, for every model and format in the settings."""
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
        """Device hours of training, and of all images that early stop and the later stages generate."""
        everything = [*self.watched.values(), *self.generated.values()]
        generation = sum(images.hours * images.devices for images in everything)
        return self.hours * self.cluster.gpus + generation

    @property
    def cost(self) -> float | None:
        """Price of training and generation, if a GPU hour has a price."""
        price = self.cluster.price
        return None if price is None else price * self.device_hours


def cost_of_method(train: TrainSettings) -> MethodCost:
    """The model calls of a step per image, from the method's entry. An unknown method is a `ConfigError`."""
    return pick(METHODS, train.method, "method").cost(train)


def _frozen_in_half(train: TrainSettings) -> bool:
    return train.tune == "lora" and train.lora.frozen == "bfloat16"
