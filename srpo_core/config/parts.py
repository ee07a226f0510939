"""Building blocks of the settings, and the small parts."""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
    """The base model that is aligned, and the size of its images."""

    base: str = Field(description="entry of the registry `bases`")
    path: str = Field(description="directory of the base model in diffusers' layout")
    height: Positive = Field(description="image height in pixels, a multiple of 16")
    width: Positive = Field(description="image width in pixels, a multiple of 16")
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
    choice: Literal["in_turn", "by_weight"] = Field(
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
        return cls(use="words", choice="in_turn", library={"words": pair})

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


class GenerateSettings(Part):
    """How images are drawn for selection, evaluation and proofs."""

    num_inference_steps: Positive = Field(description="denoising steps per image")
    guidance_scale: float = Field(ge=0, description="guidance given to the model")
    batch_size: Positive = Field(description="images drawn at once")
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
        description="least share of pairs on which the reward prefers the preferred image; the share itself is "
        "held to it, not its interval"
    )


class ReportSettings(Part):
    """What the report shows."""

    grid_prompts: Positive = Field(description="prompts in the before/after grid")
