"""Types of the settings, and the small parts."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


Momentum = Annotated[float, Field(ge=0, lt=1)]


Positive = Annotated[int, Field(ge=1)]


PositiveFloat = Annotated[float, Field(gt=0)]


Word = Annotated[str, Field(pattern=r"\S")]


BranchName = Literal["denoise", "inversion"]


# of an image's side: 8 by the VAE, 2 by the patches
Pixels = Annotated[int, Field(ge=16, multiple_of=16)]


DecodedParts = Literal["whole", "slices", "tiles"]


class Part(BaseModel):
    """A part of the settings: frozen, and an unknown or missing key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_word_for_a_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `yes` and `on`, which are words in YAML 1.2: DVC would compare them as words."""
        field = cls.model_fields[str(info.field_name)]
        if field.annotation is bool and not isinstance(value, bool):
            raise ValueError("write true or false")
        return value


class ModelSettings(Part):
    """The base model to align, and the size of its images."""

    base: str = Field(description="entry of the registry `bases`")
    path: str = Field(description="directory of the base model, in the layout of diffusers")
    height: Positive = Field(description="image height in pixels, a multiple of 16")
    width: Positive = Field(description="image width in pixels, a multiple of 16")
    max_sequence_length: Positive = Field(description="length of a prompt in tokens of the T5 encoder")
    embeddings: Literal["float32", "bfloat16"] = Field(
        description="data type in which prompt embeddings are stored; models receive them in float32"
    )

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels % 16:
                raise ValueError(f"{name} {pixels} is not a multiple of 16 (8x VAE, 2x2 patches)")
        return self


class ScorerSettings(Part):
    """One scorer: its code and its weights."""

    scorer: str = Field(description="entry of the registry `scorers`")
    path: str = Field(description="directory of the weights and the configuration")


class RewardSettings(ScorerSettings):
    """One of the differentiable scorers whose weighted sum training maximizes."""

    weight: PositiveFloat = Field(description="factor of the scorer's score in the sum")


def rewards_by_name(rewards: Sequence[RewardSettings]) -> dict[str, RewardSettings]:
    """Name each reward: `reward` if there is one, else `reward_SCORER`, numbered from the second of a scorer."""
    if len(rewards) == 1:
        return {"reward": rewards[0]}
    named: dict[str, RewardSettings] = {}
    for one in rewards:
        count = sum(other.scorer == one.scorer for other in named.values()) + 1
        named[f"reward_{one.scorer}" + (f"_{count}" if count > 1 else "")] = one
    return named


class WordPair(Part):
    """One pair of the library of control words, each word with its weight."""

    wanted: dict[Word, PositiveFloat] = Field(
        min_length=1, description="words for the wanted look, with their weights"
    )
    unwanted: dict[Word, PositiveFloat] = Field(
        min_length=1, description="words for the unwanted look, with their weights"
    )


class ControlWords(Part):
    """The words that are put before a prompt to describe the wanted and the unwanted look."""

    use: str = Field(description="the pair of `library` that training uses")
    choice: Literal["in_turn", "by_weight"] = Field(
        description="how a step's words are chosen: in turn, as often as the weights say, or at random by weight"
    )
    library: dict[str, WordPair] = Field(min_length=1, description="pairs of words, by name")

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
        """The pair that training uses."""
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
    """How images are generated in select, evaluate and quantize."""

    num_inference_steps: Positive = Field(description="number of denoising steps per image")
    guidance_scale: float = Field(ge=0, description="guidance scale that the model receives as an input")
    batch_size: Positive = Field(description="number of images that are generated at once")
    autocast: bool = Field(
        description="the transformer's matrices and forward passes in bfloat16, as most users generate images; off: "
        "float32"
    )
    decode: DecodedParts = Field(
        description="what the VAE decodes at once: a batch, one image, or a tile of half an image's height and width; "
        "slices and tiles need less memory, and tiles change the image slightly"
    )
    tf32: bool = Field(description="on a GPU, round the inputs of float32 arithmetic to TF32")


# what a column of a table can hold; a record with the columns chosen and rejected says by them what is preferred
ColumnMeaning = Literal[
    "prompt", "style", "image", "image_a", "image_b", "chosen", "rejected",
    "label_a", "label_b", "preferred", "rank", "group", "id_a", "id_b", "has_label",
]  # fmt: skip


Severity = Literal["critical", "warning"]


class IngestRules(Part):
    """The rules for records and images, each with the severity of breaking it (docs/data.md).

    critical: the record is bad, and `on_bad_record` decides. warning: the record is counted, and kept if it can be.
    """

    broken_record: Severity = Field(
        description="a record is not an object with the keys, types and lengths of its format"
    )
    deep_nesting: Severity = Field(description="a record is nested too deeply to be read")
    doubled_key: Severity = Field(description="an object in a record has a key twice")
    bad_number: Severity = Field(description="a number is not finite, or too large")
    empty_text: Severity = Field(description="a text has no visible character")
    control_character: Severity = Field(
        description="a text contains NUL or another control character, except tabs and line breaks"
    )
    half_surrogate: Severity = Field(
        description="a text contains half of a surrogate pair, which no file can hold"
    )
    long_prompt: Severity = Field(description="a prompt is longer than 4,000 characters")
    image_name: Severity = Field(
        description="the name of an image is not a plain relative path, or a record names an image twice"
    )
    doubled_record: Severity = Field(
        description="a record repeats an earlier one: the same prompt, images and order"
    )
    contradiction: Severity = Field(
        description="of the same prompt and two images, one record prefers the one and another record the other"
    )
    tied_record: Severity = Field(description="all images of a record have the same rank")
    prompt_spelling: Severity = Field(
        description="a prompt differs from an earlier one of its file only by case, blanks, invisible characters or "
        "Unicode form"
    )
    trained_test_prompt: Severity = Field(
        description="the prompt of a test record is also in a training record"
    )
    trained_benchmark_prompt: Severity = Field(description="a benchmark prompt is also in a training record")
    doubled_benchmark_prompt: Severity = Field(description="a benchmark prompt is in the lists twice")
    missing_image: Severity = Field(description="an image of a record is not among the images of the split")
    unreadable_image: Severity = Field(description="an image cannot be decoded")
    small_image: Severity = Field(description="the shorter side of an image has less than 16 pixels")
    elongated_image: Severity = Field(
        description="an image is more than 8 times as long as wide, or as wide as long"
    )
    equal_images: Severity = Field(description="two images of a split with different names are equal")
    trained_test_image: Severity = Field(
        description="an image of the test split is equal to one of the training split"
    )


class IngestSettings(Part):
    """Where the data are, in which format, how their prompts are split, and what happens to records that break a rule."""

    source: str = Field(description="directory or file of the data set")
    format: str = Field(description="entry of the registry `SOURCES` in srpo_core/data/sources")
    columns: dict[ColumnMeaning, str] = Field(
        description="for tables: which column holds what; {} recognises the columns of known data sets (docs/data.md)"
    )
    test_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="for tables without a split for tests: share of the prompts that is held out for evaluate and check_reward"
    )
    validation_share: Share = Field(
        description="share of the training prompts that is held out to select a checkpoint"
    )
    check_images: Literal["all", "used"] = Field(
        description="which images are decoded and checked: all of the records, or those that the run uses; only these are "
        "written. srpo data checks all"
    )
    on_bad_record: Literal["stop", "quarantine"] = Field(
        description="what a critical problem of a record does: stop ends the run; quarantine sets the record aside in "
        "runs/ingest/quarantine.jsonl"
    )
    max_bad_share: Share = Field(
        description="for quarantine: largest share of the records of each file that may be bad; more end the run. Of "
        "fewer than 1,000 records 0.001 allows none"
    )
    rules: IngestRules


class CheckRewardSettings(Part):
    """The check of the reward against human preferences, before training."""

    max_pairs: Positive | None = Field(
        description="number of held-out pairs to score; null for data without pairs, and only for these: no "
        "agreement is measured"
    )
    min_agreement: Share = Field(
        description="least share of pairs in which the reward prefers the preferred image; the measured share "
        "must reach it, not the lower bound of its interval"
    )


class ReportSettings(Part):
    """What the report shows."""

    grid_prompts: Positive = Field(description="number of prompts in the before/after grid")
