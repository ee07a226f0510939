"""The parts `select`, `evaluate`, `gate` and `quantize` of the settings."""

from typing import Annotated, Literal

from pydantic import Field

from srpo_core.config.parts import Part, Positive, PositiveFloat, ScorerSettings


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
    real_images: Annotated[int, Field(ge=0)] = Field(
        description="held-out pairs whose preferred images the metric kid compares with"
    )


class GateRule(Part):
    """One rule of the gate: a figure, what it is compared with, and its limit. See docs/gates.md."""

    metric: str = Field(description="a metric of the evaluation")
    against: Literal["base", "champion", "absolute"] = Field(
        description="the base, the model in production, or no model"
    )
    compare: str = Field(
        description="entry of the registry `comparisons`: difference, ratio of the means, win_rate (share of images that "
        "win), or, against absolute, value (the figure itself)"
    )
    side: Literal["at_least", "at_most", "within"] = Field(
        description="side of the margin on which the rule holds; within: at most the margin away from no change"
    )
    margin: float = Field(
        description="the limit: lowest figure, highest figure, or largest distance from no change"
    )
    severity: Literal["refuse", "warn", "veto", "hacking"] = Field(
        description="refuse and warn require proof that the rule holds; veto and hacking refuse on proof that it is "
        "broken, hacking only if gate.objective rises"
    )
    tie: float = Field(
        default=0.0,
        ge=0,
        description="for win_rate: figures of two images that differ by at most this much count as half a win",
    )
    meaning: str = Field(description="what is true if the rule holds, in words for the report")


class GateSettings(Part):
    """When a model may be released."""

    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="of the paired bootstrap's intervals; of all vetoes together"
    )
    resamples: Positive = Field(description="bootstrap resamples over prompts")
    objective: str = Field(description="the metric that stands for what training maximizes")
    rules: dict[str, GateRule] = Field(min_length=1)


class FormatLimits(Part):
    """When a format is left out of a release."""

    max_relative_error: PositiveFloat = Field(description="of one forward pass against fp32")
    min_psnr: float = Field(ge=0, description="dB, of images against those of bf16; bf16 itself has none")
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
