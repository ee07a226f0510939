"""The parts `select`, `evaluate`, `gate` and `quantize` of the settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    """One rule of the gate: a figure, what it is held against, and how far it may go. See docs/gates.md."""

    metric: str = Field(description="a metric of the evaluation")
    against: Literal["base", "champion", "absolute"] = Field(
        description="the base, the model now in production, or nothing"
    )
    compare: Literal["difference", "ratio", "win_rate", "value"] = Field(
        description="change, ratio of the means, share of images that win, or (absolute) the figure itself"
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
        description="for win_rate: two images whose figures differ by no more are even, each has half a win",
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
