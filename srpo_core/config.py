"""The settings: one frozen model of params.yaml, with no defaults that DVC could not see.

Each top-level key is one part; a stage's `run(...)` names the parts that it receives, and
the same names stand under `params:` of that stage in dvc.yaml.
"""

from collections.abc import Iterable, Mapping
from os.path import realpath
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from srpo_core.errors import ConfigError

PARAMS_FILE = Path("params.yaml")
PROFILES_DIR = Path("profiles")

Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Word = Annotated[str, Field(pattern=r"\S")]
BranchName = Literal["denoise", "inversion"]


class Part(BaseModel):
    """A part of the settings: frozen, and an unknown or missing key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSettings(Part):
    """The base model that is aligned, and the size of its pictures."""

    base: str = Field(description="entry of the registry `bases`")
    path: str = Field(description="directory of the base model in diffusers' layout")
    height: Positive = Field(description="picture height in pixels, a multiple of 16")
    width: Positive = Field(description="picture width in pixels, a multiple of 16")
    max_sequence_length: Positive = Field(description="tokens of the T5 prompt")

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels % 16:
                raise ValueError(f"{name} {pixels} is not a multiple of 16 (8x VAE, 2x2 patches)")
        return self


class ScorerSettings(Part):
    """One scorer: which code reads it, and where its weights are."""

    scorer: str = Field(description="entry of the registry `scorers`")
    path: str = Field(description="directory of its weights and configuration")


class WordPair(Part):
    """One entry of the library of control words: each side's words with their weights."""

    wanted: dict[Word, PositiveFloat] = Field(min_length=1, description="word for the wanted look: weight")
    unwanted: dict[Word, PositiveFloat] = Field(
        min_length=1, description="word for the unwanted look: weight"
    )


class ControlWords(Part):
    """The words put before a prompt to say what is wanted and what is not."""

    use: str = Field(description="entry of `library` that is trained")
    draw: Literal["in_turn", "by_weight"] = Field(
        description="each step's words: in turn, each as often as its weight says, or drawn with these odds"
    )
    library: dict[str, WordPair] = Field(min_length=1, description="pairs by name")

    @model_validator(mode="after")
    def _in_the_library(self) -> Self:
        if self.use not in self.library:
            raise ValueError(
                f"use {self.use!r} is not in library: known are {', '.join(sorted(self.library))}"
            )
        return self

    @classmethod
    def of(cls, wanted: Iterable[str], unwanted: Iterable[str]) -> Self:
        """A library of one pair whose words weigh the same."""
        pair = WordPair(wanted=dict.fromkeys(wanted, 1.0), unwanted=dict.fromkeys(unwanted, 1.0))
        return cls(use="words", draw="in_turn", library={"words": pair})

    @property
    def pair(self) -> WordPair:
        """The pair that is trained."""
        return self.library[self.use]

    @property
    def wanted(self) -> list[str]:
        """The words for the wanted look."""
        return list(self.pair.wanted)

    @property
    def unwanted(self) -> list[str]:
        """The words for the unwanted look."""
        return list(self.pair.unwanted)


class DrawSettings(Part):
    """How pictures are drawn for selection, evaluation and proofs."""

    steps: Positive = Field(description="denoising steps per picture")
    guidance: float = Field(ge=0, description="guidance given to the model")
    batch_size: Positive = Field(description="pictures drawn at once")
    autocast: bool = Field(
        description="forward passes in bfloat16 by torch's autocast, as most draw; off is plain float32"
    )


class IngestSettings(Part):
    """Where the HPD data lie and how their prompts are split."""

    source: str = Field(description="directory in HPDv2's layout")
    validation_share: Share = Field(
        description="share of the training prompts held out to select a checkpoint"
    )


class CheckRewardSettings(Part):
    """The check that the reward agrees with the preferences before anything is trained on it."""

    max_pairs: Positive = Field(description="held-out pairs to score")
    min_agreement: Share = Field(
        description="least share of pairs on which the reward prefers the preferred picture; the share itself is "
        "held to it, not its interval"
    )


class RolloutSettings(Part):
    """Where a training picture comes from: drawn from noise without gradients, or real."""

    source: Literal["online", "offline", "hybrid"] = Field(
        description="pictures drawn by the model, the preferred pictures of the data, or both"
    )
    share_offline: Share = Field(description="hybrid: share of the samples that start from a real picture")
    steps: Positive = Field(description="denoising steps S")
    shift: PositiveFloat = Field(description="timestep shift s of sigma' = s*sigma / (1 + (s-1)*sigma)")
    guidance: float = Field(ge=0, description="guidance during the rollout")

    @property
    def real_share(self) -> float:
        """The share of the samples that start from a real picture."""
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
    guidance: float = Field(ge=0, description="guidance of the model call that is trained")
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

    levels: Positive = Field(description="consecutive noise levels per picture, a usual step apart")
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
    """When training ends before its last step: pictures get worse for a judge and better for the reward."""

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
    batch_size: Positive = Field(description="pictures per step over all workers")
    checkpoint_every: Positive = Field(description="steps between two checkpoints; the last step has one too")
    sample_prompts: Positive = Field(description="training prompts drawn as pictures at each checkpoint")
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
        if self.draft.last_steps > self.rollout.steps:
            raise ValueError(
                f"draft.last_steps {self.draft.last_steps} is more than rollout.steps {self.rollout.steps}"
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


class SelectSettings(Part):
    """How the best of the saved checkpoints is chosen, on validation prompts."""

    num_prompts: Positive = Field(description="validation prompts drawn per checkpoint")
    seeds_per_prompt: Positive
    maximize: str = Field(description="entry of the registry `metrics` that the choice maximizes")
    keep: dict[str, float] = Field(
        description="metric: least difference to the base that a checkpoint must keep to be admissible"
    )


class EvaluateSettings(Part):
    """What is drawn and measured on the test prompts."""

    num_prompts: Positive = Field(description="test prompts drawn per model")
    seeds_per_prompt: Positive
    metrics: list[str] = Field(min_length=1, description="entries of the registry `metrics`")
    scorers: dict[str, ScorerSettings] = Field(
        description="further differentiable scorers by name; each adds the metrics NAME and NAME_sgp"
    )
    real_pictures: Annotated[int, Field(ge=0)] = Field(
        description="held-out pairs whose preferred pictures the metric kid compares with"
    )


class GateRule(Part):
    """One rule of the gate: a figure, what it is held against, and how far it may go. See docs/gates.md."""

    metric: str = Field(description="a metric of the evaluation")
    against: Literal["base", "champion", "absolute"] = Field(
        description="the base, the model now in production, or nothing"
    )
    compare: Literal["difference", "ratio", "win_rate", "value"] = Field(
        description="change, ratio of the means, share of pictures that win, or (absolute) the figure itself"
    )
    side: Literal["at_least", "at_most", "within"] = Field(
        description="on which side of the margin the rule holds; within: no further than it from no change"
    )
    margin: float = Field(description="the least, the greatest, or the farthest that the rule allows")
    severity: Literal["refuse", "warn", "veto", "hacking"] = Field(
        description="refuse and warn ask for proof that the rule holds, veto and hacking refuse on proof that it "
        "is broken; hacking only while gate.objective rises"
    )
    tie: float = Field(
        default=0.0,
        ge=0,
        description="for win_rate: two pictures whose figures differ by no more are even, each has half a win",
    )
    meaning: str = Field(description="what holds if the rule holds, in words that a newcomer understands")

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.tie and self.compare != "win_rate":
            raise ValueError("tie is for compare win_rate alone")
        if (self.against == "absolute") != (self.compare == "value"):
            raise ValueError("compare is value if and only if against is absolute")
        if self.side == "within" and (self.compare == "value" or self.margin < 0):
            raise ValueError("side within needs a comparison and a margin of 0 or more")
        return self


class GateSettings(Part):
    """When a model may be released."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="of the paired bootstrap's intervals; of all vetoes together"
    )
    resamples: Positive = Field(description="bootstrap resamples over prompts")
    objective: str = Field(description="the metric that stands for what training maximizes")
    rules: dict[str, GateRule] = Field(min_length=1)


class ReportSettings(Part):
    """What the report shows."""

    grid_prompts: Positive = Field(description="prompts in the before/after grid")


class FormatLimits(Part):
    """When a format is left out of a release."""

    max_relative_error: PositiveFloat = Field(description="of one forward pass against fp32")
    min_psnr: float = Field(ge=0, description="dB, of pictures against those of bf16; bf16 itself has none")
    min_completeness: float = Field(
        ge=0, description="noise of bf16's last latents over this format's; below 1, denoising is incomplete"
    )
    min_gain_kept: float = Field(
        description="least share of the alignment's gain over the base that survives"
    )


class QuantizeSettings(Part):
    """Which files a release carries, and how they are looked at before."""

    num_prompts: Positive = Field(description="test prompts drawn per format, with one of evaluate's seeds")
    gain: str = Field(description="entry of the registry `metrics` whose gain over the base must survive")
    formats: dict[str, FormatLimits] = Field(min_length=1, description="entries of the registry `quantizers`")


class ReleaseSettings(Part):
    """What a release is called and what its model card says. Read by publishing; no stage depends on it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="a version is this name and a hash of dvc.lock"
    )
    base_model: str = Field(description="the base model as the card names it, an id on the hub if it has one")
    license: str = Field(
        description="licence of the weights, as the hub spells it; `other` needs license_name"
    )
    license_name: str | None = Field(description="name of a licence that the hub does not know, or null")
    license_files: list[str] = Field(
        min_length=1, description="licence texts that are carried along, the weights' own first"
    )
    unconditional_store: bool = Field(
        description="publish to a store that ignores conditional writes: only one publisher at a time is safe"
    )
    datasets: list[str] = Field(description="data sets of the model card, by their ids on the hub")
    tags: list[str] = Field(description="tags of the model card")

    @model_validator(mode="after")
    def _licence_has_a_name(self) -> Self:
        if (self.license == "other") != (self.license_name is not None):
            raise ValueError("license_name belongs to license: other, and to no licence that the hub knows")
        return self


class StallSettings(Part):
    """When training counts as stalled, and how often it is started again."""

    factor: Annotated[float, Field(gt=1)] = Field(
        description="a step that takes this many times the median step is stalled"
    )
    least_seconds: PositiveFloat = Field(description="and no step is stalled before this many seconds")
    restarts: Annotated[int, Field(ge=0)] = Field(
        description="times that the workers are started again after a stall or a crash before the run fails"
    )


class ResourceSettings(Part):
    """Where and how wide a run is computed. No stage depends on these: they do not change the result's meaning."""

    train_workers: Positive = Field(description="Ray Train workers, at most")
    min_train_workers: Positive = Field(
        description="workers with which to begin or go on when a cluster has no room for all"
    )
    draw_workers: Positive = Field(
        description="Ray tasks that draw pictures at once; 1 draws in the stage itself"
    )
    threads_per_worker: Positive = Field(description="CPU threads of each process that computes")
    use_gpu: bool = Field(description="one GPU per worker")
    shard: bool = Field(
        description="weights, gradients and optimizer cut over the workers (FSDP2), or whole on each"
    )
    keep_checkpoints: Positive = Field(
        description="newest checkpoints to resume from; the weights of the others are kept all the same"
    )
    async_checkpoints: bool = Field(
        description="train on while a checkpoint is written; needs room for a copy in CPU memory"
    )
    stall: StallSettings

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_train_workers > self.train_workers:
            raise ValueError(
                f"min_train_workers {self.min_train_workers} is more than train_workers {self.train_workers}"
            )
        return self


class Settings(Part):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = Field(description="every random draw derives from it")
    model: ModelSettings
    reward: ScorerSettings = Field(description="the differentiable scorer that is trained against")
    select_judge: ScorerSettings = Field(description="never trained against; chooses the checkpoint")
    judge: ScorerSettings = Field(
        description="never trained against, never used to choose; judges at the gate"
    )
    control_words: ControlWords
    champion: str | None = Field(
        description="version of the release that a new model is compared with; a flow fills in the alias production"
    )
    draw: DrawSettings
    ingest: IngestSettings
    check_reward: CheckRewardSettings
    train: TrainSettings
    select: SelectSettings
    evaluate: EvaluateSettings
    gate: GateSettings
    report: ReportSettings
    quantize: QuantizeSettings
    release: ReleaseSettings
    resources: ResourceSettings

    @model_validator(mode="after")
    def _judges_of_their_own(self) -> Self:
        """What was trained against cannot judge, and what chose a checkpoint cannot judge it."""
        roles = {"reward": self.reward, "select_judge": self.select_judge, "judge": self.judge}
        for one, other in (("reward", "select_judge"), ("reward", "judge"), ("select_judge", "judge")):
            if _same_place(roles[one].path, roles[other].path):
                raise ValueError(
                    f"{one} and {other} are the same model ({roles[one].path}): each needs its own"
                )
        return self

    @model_validator(mode="after")
    def _witnesses_of_their_own(self) -> Self:
        """A further scorer that decides at the gate is neither what was trained against nor what chose."""
        for name, rule in self.gate.rules.items():
            scorer = self.evaluate.scorers.get(rule.metric.removesuffix("_sgp"))
            for role, one in (("reward", self.reward), ("select_judge", self.select_judge)):
                if scorer and _same_place(scorer.path, one.path):
                    raise ValueError(
                        f"gate.rules.{name} asks {rule.metric}, whose weights are those of {role} ({one.path}): "
                        "give the scorer other weights, or the rule another metric"
                    )
        return self


def _same_place(one: str, other: str) -> bool:
    return realpath(one) == realpath(other)


def parse_settings(values: Mapping[str, Any], where: str) -> Settings:
    """Validate `values` as settings; `where` names their origin in the error.

    Raises:
        ConfigError: a key is unknown, missing or out of range; one line for all of them.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {faults(error)}. See srpo_core/config.py for every key") from None


def faults(error: ValidationError) -> str:
    """All that pydantic found wrong, in one line that names each key."""
    return "; ".join(_describe(fault) for fault in error.errors())


def load_settings(path: Path = PARAMS_FILE) -> Settings:
    """Read and validate a settings file. Raises `ConfigError` in one line when it cannot be used."""
    return parse_settings(read_values(path), str(path))


def read_values(path: Path) -> Mapping[str, Any]:
    """Read a settings file without checking its keys. Raises `ConfigError` in one line when it is no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not PROFILES_DIR.is_dir():
            raise ConfigError(
                f"{path} is missing, and this is no checkout: change to the clone's top"
            ) from None
        raise ConfigError(f"{path} is missing: write it with 'srpo profile tiny > {path}'") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping of settings, found {'nothing' if values is None else type(values).__name__}"
        )
    return values


def profile_names(root: Path = Path()) -> list[str]:
    """The presets in profiles/ of the checkout at `root`, by name."""
    return sorted(path.stem for path in (root / PROFILES_DIR).glob("*.yaml"))


def profile_path(name: str, root: Path = Path()) -> Path:
    """The file of a preset in the checkout at `root`. Raises `ConfigError` naming the known ones."""
    known = profile_names(root)
    if name not in known:
        raise ConfigError(
            f"unknown profile {name!r}: known are {', '.join(known) or 'none'} (directory {PROFILES_DIR}/)"
        )
    return root / PROFILES_DIR / f"{name}.yaml"


def patched(values: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a nested patch over settings; an absent or None entry keeps the preset's value."""
    merged = dict(values)
    for key, new in patch.items():
        if new is None:
            continue
        old = merged.get(key)
        merged[key] = patched(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return merged


def _describe(fault: Any) -> str:
    key = ".".join(str(step) for step in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    if fault["type"] == "missing":
        return f"missing key {key!r}"
    given = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}{given}"[:300]
