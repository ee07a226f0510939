"""The parts `select`, `evaluate`, `gate` and `quantize` of the settings."""

from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from srpo_core.config.parts import Part, Positive, PositiveFloat, ScorerSettings


class HalvingSettings(Part):
    """Successive halving: checkpoints that are clearly worse on the first prompts are dropped (docs/gates.md)."""

    rounds: Annotated[int, Field(ge=2)] = Field(
        description="number of rounds; each has twice the prompts of the one before, the last has all"
    )
    distance: Annotated[float, Field(ge=0)] = Field(
        description="standard errors of the paired difference by which a checkpoint of the worse half must be behind"
    )


class SelectSettings(Part):
    """How the best of the saved checkpoints is chosen, on validation prompts."""

    num_prompts: Positive = Field(description="number of validation prompts per checkpoint")
    seeds_per_prompt: Positive
    maximize: str = Field(description="metric that the chosen checkpoint maximizes")
    keep: dict[str, float] = Field(
        description="by metric, the least allowed difference to the base; a checkpoint below it is not admissible"
    )
    halving: HalvingSettings | None = Field(
        description="how clearly worse checkpoints are dropped early, or null: each has images of all prompts"
    )


class EvaluateSettings(Part):
    """What is generated from the test prompts, and measured."""

    num_prompts: Positive = Field(description="number of test prompts per model")
    seeds_per_prompt: Positive
    metrics: list[str] = Field(min_length=1, description="entries of the registry `metrics`")
    scorers: dict[str, ScorerSettings] = Field(
        description="further differentiable scorers by name; each adds the metrics NAME and NAME_sgp"
    )
    real_images: Annotated[int, Field(ge=0)] = Field(
        description="number of held-out pairs whose preferred images the metric kid uses as real images"
    )
    stages: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1,
        description="shares of the prompts after which the gate's rules may end the evaluation, ascending; the last is 1",
    )

    @model_validator(mode="after")
    def _ascending_stages(self) -> Self:
        if self.stages != sorted(set(self.stages)) or self.stages[-1] != 1:
            raise ValueError(f"stages {self.stages} must ascend and end with 1.0, such as [0.5, 0.75, 1.0]")
        return self


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
    margin: FiniteFloat = Field(
        description="the limit: lowest figure, highest figure, or largest distance from no change"
    )
    severity: Literal["refuse", "warn", "veto", "hacking"] = Field(
        description="refuse and warn require proof that the rule holds; veto and hacking refuse on proof that it is "
        "broken, hacking only if gate.objective rises"
    )
    tie: FiniteFloat = Field(
        default=0.0,
        ge=0,
        description="for win_rate: figures of two images that differ by at most this much count as half a win",
    )
    meaning: str = Field(description="what is true if the rule holds, in words for the report")


class GateSettings(Part):
    """When a model may be released."""

    confidence: Annotated[float, Field(ge=0.8, lt=1)] = Field(
        description="confidence of the intervals, at least 0.8; for vetoes, of all of them together"
    )
    resamples: Positive = Field(description="number of bootstrap resamples over prompts")
    objective: str = Field(description="the metric that training maximizes")
    rules: dict[str, GateRule] = Field(min_length=1)
    ratings: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{12}:[0-9a-f]{12}$")], ...] = Field(
        default=(),
        description="finished rating tasks for rules about people's ratings, TASK:DIGEST as 'srpo rate finish' prints it",
    )


class FormatLimits(Part):
    """Limits of a format; one that misses a limit is left out of the release."""

    max_relative_error: PositiveFloat = Field(
        description="relative error of one forward pass, compared with float32"
    )
    min_psnr: float = Field(
        ge=0,
        description="least PSNR in dB of images, compared with those of bf16; bf16 itself is not compared",
    )
    min_completeness: float = Field(
        ge=0,
        description="least ratio of the noise left in bf16's last latents to that in this format's; below 1, denoising is less complete",
    )
    min_gain_kept: float = Field(description="least share of the gain over the base that the format keeps")


class QuantizeSettings(Part):
    """Which formats a release has, and how they are checked."""

    num_prompts: Positive = Field(
        description="number of test prompts per format, each with one of the seeds of evaluate"
    )
    gain: str = Field(description="metric whose gain over the base a format must keep")
    formats: dict[str, FormatLimits] = Field(min_length=1, description="entries of the registry `quantizers`")
