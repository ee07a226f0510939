"""What the figures of a plan are computed from: settings, cluster, sizes of the models, and counted calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.method import MethodCost
from srpo_core.config import Settings, TrainSettings
from srpo_core.errors import pick
from srpo_core.models.sharding import workers_per_copy
from srpo_core.plan.cluster import CONTEXT_BYTES, Cluster
from srpo_core.plan.counting import Counted, Forward
from srpo_core.training.micro_batches import images_per_call, largest_share, num_micro_batches


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models.

    all, trained, block, trained_of_block, rest: parameters of the transformer with adapters, of its trained part, of its
    largest block, of the trained part of that block, and outside of the blocks. pinned: parameters of the blocks without
    adapters, each tensor rounded up to what it takes of pinned memory. vae, reward, encoders: parameters of the
    VAE, all rewards and all text encoders. matrices, in_four_bits, largest_matrix: frozen parameters in the matrices of the
    blocks' linear layers, their bytes in 4 bits, and the parameters of the largest one.
    """

    all: int
    trained: int
    block: int
    trained_of_block: int
    rest: int
    pinned: int
    vae: int
    reward: int
    encoders: int
    matrices: int
    in_four_bits: int
    largest_matrix: int


@dataclass(frozen=True)
class Counts:
    """Calls counted on the meta device.

    call: a training call; velocity, decode: in bfloat16 (True) or float32, as far as the settings need it, one transformer
    call and the decoder for one image; decode_in_parts: the decoder as `generate.decode` says; encode: the text encoders
    for one batch of prompts; score: all rewards for one image.
    """

    call: Counted
    velocity: Mapping[bool, Forward]
    decode: Mapping[bool, Forward]
    decode_in_parts: Forward
    encode: Forward
    score: Forward


@dataclass(frozen=True)
class Case:
    """The inputs of a plan, and what several of its figures need."""

    settings: Settings
    cluster: Cluster
    sizes: Sizes
    counts: Counts

    @property
    def images(self) -> int:
        """Images per step on the device that has the most."""
        return largest_share(self.settings.train, self.cluster.gpus)

    @property
    def at_once(self) -> int:
        """Images that a device computes at once in training."""
        return images_per_call(self.settings.train, self.cluster.gpus)

    @property
    def micro_batches(self) -> int:
        """Parts in which a device computes its images of a step."""
        return num_micro_batches(self.settings.train, self.cluster.gpus)

    @property
    def cost_of_method(self) -> MethodCost:
        """The model calls of a step per image, for the trained method."""
        return cost_of_method(self.settings.train)

    @property
    def shards(self) -> int:
        """Number of devices that share one copy of the trained model."""
        return workers_per_copy(self.settings.resources, self.cluster.gpus)

    @property
    def base(self) -> int:
        """Parameters of the base without adapters."""
        adapters = self.sizes.trained if self.settings.train.tune == "lora" else 0
        return self.sizes.all - adapters

    @property
    def half(self) -> bool:
        """Whether training computes in bfloat16."""
        return self.settings.train.compute.autocast

    @property
    def gathered_width(self) -> int:
        """Bytes of a gathered weight."""
        return 2 if self.half else 4

    @property
    def scorer(self) -> float:
        """Bytes of one scorer: each is assumed to be as large as a reward."""
        return 4.0 * self.sizes.reward / len(self.settings.rewards)

    @property
    def context(self) -> float:
        """Bytes that a device needs for itself."""
        return CONTEXT_BYTES if self.settings.resources.use_gpu else 0.0


def cost_of_method(train: TrainSettings) -> MethodCost:
    """The model calls of a step per image, from the method's entry. An unknown method is a `ConfigError`."""
    return pick(METHODS, train.method, "method").cost(train)
