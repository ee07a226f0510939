"""The model of all settings, and the checks that involve several parts."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import combinations
from os.path import realpath
from types import UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from srpo_core.config.evaluation import EvaluateSettings, GateSettings, QuantizeSettings, SelectSettings
from srpo_core.config.parts import (
    CheckRewardSettings,
    ControlWords,
    GenerateSettings,
    IngestSettings,
    ModelSettings,
    Part,
    ReportSettings,
    RewardSettings,
    ScorerSettings,
    rewards_by_name,
)
from srpo_core.config.renamed import new_names
from srpo_core.config.running import ReleaseSettings, ResourceSettings, WatchSettings
from srpo_core.config.training import TrainSettings
from srpo_core.errors import ConfigError


class Settings(Part):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = Field(description="seed of all random numbers")
    model: ModelSettings
    rewards: list[RewardSettings] = Field(
        min_length=1,
        description="the differentiable scorers whose weighted sum training maximizes",
    )
    select_judge: ScorerSettings = Field(description="not used in training; chooses the checkpoint")
    judge: ScorerSettings = Field(
        description="not used in training or to choose the checkpoint; measures for the gate"
    )
    control_words: ControlWords
    champion: str | None = Field(
        description="version of the release to compare with, or null; the flow `align` fills in the one in production"
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
    watch: WatchSettings
    resources: ResourceSettings

    @model_validator(mode="after")
    def _separate_judges(self) -> Self:
        """Every reward, select_judge and judge must have different weights."""
        roles = rewards_by_name(self.rewards) | {"select_judge": self.select_judge, "judge": self.judge}
        for one, other in combinations(roles, 2):
            if _same_place(roles[one].path, roles[other].path):
                raise ValueError(
                    f"{one} and {other} are the same model ({roles[one].path}): each needs its own"
                )
        return self

    @model_validator(mode="after")
    def _separate_scorers_at_the_gate(self) -> Self:
        """A further scorer that a rule of the gate uses must not have the weights of a reward or of select_judge."""
        trained = rewards_by_name(self.rewards) | {"select_judge": self.select_judge}
        for name, rule in self.gate.rules.items():
            scorer = self.evaluate.scorers.get(rule.metric.removesuffix("_sgp"))
            for role, one in trained.items():
                if scorer and _same_place(scorer.path, one.path):
                    raise ValueError(
                        f"gate.rules.{name} uses {rule.metric}, which has the weights of {role} ({one.path}): "
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
    """Describe all faults that pydantic found, in one line that names each key."""
    return "; ".join(_describe(fault) for fault in error.errors())


def known_keys(part: type[BaseModel] = Settings, above: str = "") -> Iterator[str]:
    """Yield the dotted keys of the settings; those below a list, and those that the user names, are left out."""
    for name, field in part.model_fields.items():
        yield f"{above}{name}"
        either = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
        for kind in (field.annotation, *either):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{above}{name}.")


def _similar(key: str) -> str:
    """Say in brackets which keys are spelled alike or have the same last part; empty if there is none."""
    known = list(known_keys())
    last = key.rpartition(".")[2]
    same = [one for one in known if one.rpartition(".")[2] == last]
    found = list(dict.fromkeys([*get_close_matches(key, known, n=1, cutoff=0.7), *same]))[:3]
    return f" (known: {', '.join(found)})" if found else ""


def _describe(fault: Any) -> str:
    key = ".".join(str(step) for step in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"unknown key {key!r}{new_names(key, fault['input']) or _similar(key)}"
    if fault["type"] == "missing":
        return f"missing key {key!r}"
    given = "" if isinstance(fault["input"], Mapping) else f" (got {fault['input']!r})"
    return f"{key}: {fault['msg'].removeprefix('Value error, ')}{given}"[:300]
