"""All settings: one frozen model of params.yaml, and the checks that span several parts."""

from collections.abc import Mapping
from os.path import realpath
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from srpo_core.config.evaluation import EvaluateSettings, GateSettings, QuantizeSettings, SelectSettings
from srpo_core.config.parts import (
    CheckRewardSettings,
    ControlWords,
    GenerateSettings,
    IngestSettings,
    ModelSettings,
    Part,
    ReportSettings,
    ScorerSettings,
)
from srpo_core.config.renamed import new_names
from srpo_core.config.running import ReleaseSettings, ResourceSettings
from srpo_core.config.training import TrainSettings
from srpo_core.errors import ConfigError


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
    generate: GenerateSettings
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
        raise ConfigError(f"{where}: {faults(error)}. See srpo_core/config/ for every key") from None


def faults(error: ValidationError) -> str:
    """All that pydantic found wrong, in one line that names each key."""
    return "; ".join(_describe(fault) for fault in error.errors())


def _describe(fault: Any) -> str:
    key = ".".join(str(step) for step in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{new_names(key, fault['input'])}"
    if fault["type"] == "missing":
        return f"missing key {key!r}"
    given = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}{given}"[:300]
