"""The part `train` of the settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from srpo_core.config.parts import BranchName, Momentum, Part, Positive, PositiveFloat, Share


class RolloutSettings(Part):
    """Where a training image comes from: drawn from noise without gradients, or real."""

    source: Literal["online", "offline", "hybrid"] = Field(
        description="images drawn by the model, the preferred images of the data, or both"
    )
    share_offline: Share = Field(description="hybrid: share of the samples that start from a real image")
    num_inference_steps: Positive = Field(description="denoising steps S")
    shift: PositiveFloat = Field(description="timestep shift s of sigma' = s*sigma / (1 + (s-1)*sigma)")
    guidance_scale: float = Field(ge=0, description="guidance during the rollout")

    @property
    def real_share(self) -> float:
        """The share of the samples that start from a real image."""
        return {"online": 0.0, "offline": 1.0, "hybrid": self.share_offline}[self.source]


class DirectAlignSettings(Part):
    """Direct-Align and the relative reward; symbols as in docs/algorithm.md."""

    grid: Annotated[int, Field(ge=20)] = Field(description="N, points of the training grid")
    schedule_steps: Positive = Field(description="V, steps of the schedule that bounds the grid")
    first: Annotated[int, Field(ge=0)] = Field(
        description="index of the grid's noisiest sigma in that schedule"
    )
    last: Positive = Field(description="index of the grid's cleanest sigma in that schedule")
    ratio: Share = Field(description="groundtruth ratio r; the step is about (1-r)*N grid points")
    guidance_scale: float = Field(ge=0, description="guidance of the model call that is trained")
    discount_denoise: tuple[float, float] = Field(description="k of the denoise branch, from clean to noisy")
    discount_inversion: tuple[float, float] = Field(
        description="k of the inversion branch, from clean to noisy"
    )
    branches: list[BranchName] = Field(
        min_length=1, description="model calls of one pair in their order; their losses are averaged"
    )
    margin: float = Field(description="loss = relu(margin - reward): no gradient past it")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.first < self.last <= self.schedule_steps:
            raise ValueError(
                f"need first < last <= schedule_steps, got {self.first}, {self.last}, {self.schedule_steps}"
            )
        return self


class AggregateSettings(Part):
    """The sum over noise levels of the method direct_align_aggregated."""

    levels: Positive = Field(description="consecutive noise levels per image, a usual step apart")
    decay: Annotated[float, Field(gt=0, le=1)] = Field(
        description="lambda of a level over that of the noisier one before it"
    )


class ReflSettings(Part):
    """The baseline refl."""

    late_share: Annotated[float, Field(gt=0, le=1)] = Field(
        description="last share of the rollout's steps, of which one is trained"
    )


class DraftSettings(Part):
    """The baselines draft_k and draft_lv."""

    last_steps: Positive = Field(description="draft_k: K, the last rollout steps that the gradient reaches")
    variations: Positive = Field(
        description="draft_lv: n, noise variations of the last step that are averaged"
    )


class EarlyStop(Part):
    """When training ends before its last step: images get worse for a judge and better for the reward."""

    metric: str = Field(description="entry of the registry `metrics` that falls, by the judge `select_judge`")
    objective: str = Field(description="entry of the registry `metrics` that rises: what training maximizes")
    num_prompts: Positive = Field(description="training prompts drawn at each checkpoint, always the same")
    seeds_per_prompt: Positive
    margin: float = Field(ge=0, description="a figure this far below the best one before it counts as a fall")
    patience: Positive = Field(description="checkpoints in a row at which it has fallen")


class OptimizerSettings(Part):
    """AdamW at a constant learning rate."""

    learning_rate: PositiveFloat
    weight_decay: float = Field(ge=0)
    betas: tuple[Momentum, Momentum] = Field(description="of the first and the second moment")
    eps: PositiveFloat
    max_grad_norm: PositiveFloat = Field(description="the total gradient norm is clipped to this")


class ComputeSettings(Part):
    """What training trades for time and memory; every key off is plain float32 that keeps all activations."""

    autocast: bool = Field(
        description="forward passes in bfloat16 by torch's autocast; weights, losses and AdamW stay in float32"
    )
    rollout_copy: bool = Field(
        description="a bfloat16 copy of the transformer that draws the rollouts, kept equal to the trained weights"
    )
    checkpoint_blocks: Share = Field(
        description="share of the transformer's blocks whose activations are computed again instead of kept"
    )
    checkpoint_decode: bool = Field(description="the same for every block of the VAE's decoder")
    compile: bool = Field(
        description="torch.compile of the transformer's blocks and of the VAE's decoder; needs a C++ compiler"
    )
    fused_optimizer: bool = Field(description="AdamW in one kernel: quicker, another last bit")


class LoraSettings(Part):
    """Low-rank adapters beside frozen weights, for train.tune lora."""

    rank: Positive = Field(description="r, inner dimension of an adapter")
    alpha: PositiveFloat = Field(description="an adapter's output is multiplied by alpha / rank")
    targets: list[str] = Field(
        min_length=1, description="ends of the names of the linear layers in the blocks that get an adapter"
    )
    frozen: Literal["float32", "bfloat16"] = Field(
        description="type in which the frozen weights lie in memory; bfloat16 needs train.compute.autocast"
    )


class TrainSettings(Part):
    """The alignment run."""

    method: str = Field(description="entry of the registry `methods`")
    reference: bool = Field(
        description="compute as the reference's code does, with its truncated time input and bfloat16 noise"
    )
    steps: Positive = Field(description="optimizer steps")
    batch_size: Positive = Field(description="images per step over all workers")
    checkpoint_every: Positive = Field(description="steps between two checkpoints; the last step has one too")
    sample_prompts: Positive = Field(description="training prompts drawn as images at each checkpoint")
    noise: Literal["per_sample", "shared"] = Field(
        description="noise of its own for each sample, or one for all samples of a step"
    )
    reward_text: Literal["wanted", "plain"] = Field(
        description="what methods without a relative term score: the prompt with or without the wanted word"
    )
    pairs_per_rollout: Positive = Field(
        description="R, noise levels trained per rollout; their losses are averaged"
    )
    batch_branches: bool = Field(
        description="the branches of a pair in one model call: faster, and needs the memory of both"
    )
    rollout: RolloutSettings
    direct_align: DirectAlignSettings
    aggregate: AggregateSettings
    refl: ReflSettings
    draft: DraftSettings
    optimizer: OptimizerSettings
    early_stop: EarlyStop | None = Field(description="when to end before the last step, or null")
    compute: ComputeSettings
    tune: Literal["full", "lora"] = Field(
        description="what is trained: all weights, or adapters (train.lora)"
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
    def _computable(self) -> Self:
        if self.tune == "lora" and self.lora.frozen == "bfloat16" and not self.compute.autocast:
            raise ValueError("lora.frozen bfloat16 needs compute.autocast: true")
        return self

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps after which there is a checkpoint, rising; the last step is always one of them."""
        return *range(self.checkpoint_every, self.steps, self.checkpoint_every), self.steps
