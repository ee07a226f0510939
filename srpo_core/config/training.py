"""The part `train` of the settings."""

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from srpo_core.config.methods import (
    AggregateSettings,
    DanceGrpoSettings,
    DirectAlignSettings,
    DraftSettings,
    ReflSettings,
    RolloutSettings,
)
from srpo_core.config.parts import Momentum, Part, Pixels, Positive, PositiveFloat, Share

# The settings that change how much memory a step needs, and of its result only the rounding. A killed run resumes with
# another value of them. No draw, loss or checkpoint depends on them; precision, kernels and `tune` are not of this kind.
MEMORY_ONLY: Final = (
    "train.micro_batch_size",
    "train.batch_branches",
    "train.compute.gather_rollout",
    "train.compute.checkpoint_blocks",
    "train.compute.checkpoint_decode",
)


class AlarmLimit(Part):
    """A limit of early stop on a metric, relative to the base's images of the same prompts."""

    metric: str = Field(description="metric, measured with `select_judge` as judge")
    compare: Literal["difference", "ratio"] = Field(
        description="the means over the images: aligned - base, or aligned / base"
    )
    side: Literal["at_least", "at_most", "within"] = Field(
        description="within: the difference is at most `margin` in both directions"
    )
    margin: float
    cap: PositiveFloat | None = Field(
        description="an image's difference on the allowed side counts as at most this, or, for a ratio, its figure as "
        "at most this multiple of the base's mean; null: all of the metric's range counts, and proofs take longer"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.side == "within" and (self.compare == "ratio" or self.margin <= 0):
            raise ValueError("side within needs compare difference and a margin above 0")
        if self.compare == "ratio" and self.margin <= 0:
            raise ValueError("compare ratio needs a margin above 0")
        return self


class EarlyStop(Part):
    """When training ends early: when it is proven that the images are beyond a limit (docs/alarm.md)."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="chance of a false alarm in a whole run, over all limits and checkpoints together"
    )
    num_prompts: Positive = Field(description="number of validation prompts, the same at each checkpoint")
    seeds_per_prompt: Positive = Field(description="images of each prompt per checkpoint, from new noise")
    num_inference_steps: Positive = Field(description="number of denoising steps of these images")
    base_seeds: Positive = Field(
        description="images of each prompt by the base, which are generated once and kept for later runs"
    )
    max_broken: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="limit on the share of broken images beyond the base's own share"
    )
    limits: dict[str, AlarmLimit] = Field(description="further limits by name")


class ScheduleSettings(Part):
    """The learning rate over the steps, as a share of train.optimizer.learning_rate."""

    name: Literal["constant", "linear", "cosine"] = Field(
        description="after the warm-up: constant, or falling to zero after the last step in a line or half a cosine"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        description="number of first steps in which the learning rate rises to its whole in a line; 0: none"
    )


class OptimizerSettings(Part):
    """AdamW, and its learning rate."""

    kind: Literal["adamw", "adamw_8bit"] = Field(
        description="adamw: moments in float32; adamw_8bit: in 8 bits (bitsandbytes), without resources.shard"
    )
    learning_rate: PositiveFloat = Field(description="the largest learning rate of a step")
    schedule: ScheduleSettings
    weight_decay: float = Field(ge=0)
    betas: tuple[Momentum, Momentum] = Field(description="decay rates of the first and the second moment")
    eps: PositiveFloat
    max_grad_norm: PositiveFloat = Field(
        description="maximum of the total gradient norm; a larger gradient is scaled down"
    )


class EmaSettings(Part):
    """The exponential moving average of the trained weights, which is sampled, selected and released."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="share of the average that a step keeps, at most: step start + 1 + n keeps (1 + n) / (10 + n) if "
        "that is less"
    )
    start: Annotated[int, Field(ge=0)] = Field(
        description="the average equals the weights up to step start + 1"
    )


class ComputeSettings(Part):
    """Speed and memory of training. With every key off: float32, and all activations are kept."""

    autocast: bool = Field(
        description="forward passes in bfloat16 by torch.autocast; weights, losses and AdamW stay in float32"
    )
    gather_rollout: bool = Field(
        description="keep the weights of a sharded transformer gathered while images are generated, instead of "
        "gathering them for each denoising step; needs memory for all of them"
    )
    checkpoint_blocks: Share = Field(
        description="share of the transformer's blocks with activation checkpointing"
    )
    checkpoint_decode: bool = Field(description="activation checkpointing of the blocks of the VAE decoder")
    compile: bool = Field(
        description="torch.compile of the transformer's blocks and of the VAE decoder; needs a C++ compiler"
    )
    attention: Literal["native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"] = (
        Field(
            description="the transformer's attention, by diffusers' names: torch's choice, or always one of its kernels"
        )
    )
    tf32: bool = Field(
        description="on a GPU, round the inputs of float32 matrix products and convolutions to TF32"
    )
    fused_optimizer: bool = Field(
        description="AdamW in one fused kernel: faster, with other rounding; adamw_8bit always is"
    )


class LoraSettings(Part):
    """Low-rank adapters on frozen weights, for train.tune lora."""

    rank: Positive = Field(description="r, inner dimension of an adapter")
    alpha: PositiveFloat = Field(description="the output of an adapter is scaled by alpha / rank")
    targets: list[str] = Field(
        min_length=1,
        description="linear layers of the blocks that get an adapter, by the ends of their names",
    )
    frozen: Literal["float32", "bfloat16", "nf4"] = Field(
        description="data type of the frozen weights; nf4: 4 bits in the blocks' linear layers (QLoRA), else bfloat16; "
        "bfloat16 and nf4 need train.compute.autocast"
    )


class TrainSettings(Part):
    """The alignment run."""

    method: str = Field(description="entry of the registry `methods`")
    reference: bool = Field(
        description="compute as the reference implementation does: truncated time input, bfloat16 noise"
    )
    steps: Positive = Field(description="number of optimizer steps")
    batch_size: Positive = Field(
        description="number of images per step, over all workers; of groups of images with dance_grpo"
    )
    micro_batch_size: Positive | None = Field(
        description="number of images of a worker that are computed at once, at most; gradients are added up. "
        "null: the worker's whole share of the batch"
    )
    checkpoint_every: Positive = Field(
        description="number of steps between checkpoints; the last step always has one"
    )
    buckets: Annotated[list[tuple[Pixels, Pixels]], Field(min_length=1)] | None = Field(
        description="heights and widths of training images, one of which is drawn for each step; null: those of model"
    )
    sample_prompts: Positive = Field(
        description="number of training prompts with a sample image at each checkpoint"
    )
    noise: Literal["per_sample", "shared"] = Field(
        description="noise of a step: different for each sample, or the same for all samples"
    )
    reward_text: Literal["wanted", "plain"] = Field(
        description="text that methods without a relative term score: the prompt with or without the wanted word"
    )
    pairs_per_rollout: Positive = Field(
        description="R, number of noise levels trained per rollout; their losses are averaged"
    )
    batch_branches: bool = Field(
        description="compute the branches of a pair, or the images of a group, in one model call: faster, but needs the "
        "memory of all"
    )
    rollout: RolloutSettings
    direct_align: DirectAlignSettings
    aggregate: AggregateSettings
    refl: ReflSettings
    draft: DraftSettings
    dance_grpo: DanceGrpoSettings
    optimizer: OptimizerSettings
    ema: EmaSettings | None = Field(
        description="average of the weights over the steps, which is sampled, selected and released; or null"
    )
    early_stop: EarlyStop | None = Field(description="when to end before the last step, or null")
    compute: ComputeSettings
    tune: Literal["full", "lora"] = Field(
        description="what is trained: all weights, or adapters (see train.lora)"
    )
    lora: LoraSettings

    @model_validator(mode="after")
    def _within_the_rollout(self) -> Self:
        if self.draft.last_steps > self.rollout.num_inference_steps:
            raise ValueError(
                f"draft.last_steps {self.draft.last_steps} is more than rollout.num_inference_steps {self.rollout.num_inference_steps}"
            )
        return self

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        warmup = self.optimizer.schedule.warmup_steps
        if warmup >= self.steps:
            raise ValueError(
                f"optimizer.schedule.warmup_steps {warmup} must be less than steps {self.steps}: no step would have "
                "the whole learning rate"
            )
        return self

    @model_validator(mode="after")
    def _averages(self) -> Self:
        if self.ema is not None and self.ema.start + 2 > self.steps:
            raise ValueError(
                f"ema.start {self.ema.start} must be at most steps - 2, which is {self.steps - 2}: until step start + 1 the "
                "average is the weights themselves. Set ema to null to release those"
            )
        return self

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if self.buckets is not None and self.rollout.source != "online":
            raise ValueError(
                f"buckets need rollout.source online, not {self.rollout.source}: given images are of the size "
                "model.height x model.width"
            )
        if self.noise == "shared" and self.rollout.source == "cached":
            raise ValueError(
                "noise shared needs another rollout.source than cached, whose images each have their own noise: set noise "
                "to per_sample"
            )
        if self.tune == "lora" and self.lora.frozen != "float32" and not self.compute.autocast:
            raise ValueError(f"lora.frozen {self.lora.frozen} needs compute.autocast: true")
        return self
