"""The form of a run in Prefect's UI: a copy of the settings with every key optional and choices from the registries."""

from collections.abc import Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from srpo_core import config
from srpo_core.algorithm import METHODS
from srpo_core.data.sources import SOURCES
from srpo_core.errors import ConfigError
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.models import BASES
from srpo_core.scorers import SCORERS
from srpo_core.scorers.metrics import METRICS

CHOICES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "model.base": tuple(BASES),
        "rewards.scorer": tuple(name for name, scorer in SCORERS.items() if scorer.differentiable),
        "select_judge.scorer": tuple(SCORERS),
        "judge.scorer": tuple(SCORERS),
        "ingest.format": tuple(SOURCES),
        "train.method": tuple(METHODS),
        "select.maximize": tuple(METRICS),
        "evaluate.metrics": tuple(METRICS),
        "gate.rules.compare": tuple(COMPARISONS),
    }
)


def _offer_presets(schema: dict[str, Any]) -> None:
    """Make the presets of the current checkout choices of the form. A run of a revision may have others."""
    if names := config.profile_names():
        schema["enum"] = names


Profile = Annotated[str, Field(json_schema_extra=_offer_presets)]


class _Patch(BaseModel):
    model_config = ConfigDict(extra="forbid")


def patch_model(part: type[BaseModel], choices: Mapping[str, tuple[str, ...]], at: str = "") -> type[_Patch]:
    """Derive the patch model of a part of the settings: same keys, ranges and descriptions, nothing required.

    choices: allowed names by dotted key; for a list they are the allowed entries. at: dotted key of `part`.
    """
    fields = {
        name: _optional(field, choices, f"{at}.{name}".lstrip("."))
        for name, field in part.model_fields.items()
    }
    return create_model(f"{part.__name__}Patch", __base__=_Patch, __doc__=part.__doc__, **fields)


def _optional(field: FieldInfo, choices: Mapping[str, tuple[str, ...]], path: str) -> Any:
    kind: Any = _patch_type(field.annotation, choices, path)
    for constraint in field.metadata:
        kind = Annotated[kind, constraint]
    part = field.annotation if isinstance(field.annotation, type) else None
    text = field.description or (part.__doc__ if part and issubclass(part, BaseModel) else None)
    return (kind | None, Field(default=None, description=text))


def _patch_type(kind: Any, choices: Mapping[str, tuple[str, ...]], path: str) -> Any:
    if _is_part(kind):
        return patch_model(kind, choices, path)
    if get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
        # an empty field keeps the setting, so a word sets it to null
        some = [_patch_type(one, choices, path) for one in get_args(kind) if one is not NoneType]
        return Union[(Literal[config.NULL], *some)]
    if get_origin(kind) is list and _is_part(entry := get_args(kind)[0]):
        return list[_entry_model(entry, choices, path)]  # type: ignore[misc]
    if path in choices:
        known = Literal[choices[path]]  # type: ignore[valid-type]
        return list[known] if get_origin(kind) is list else known
    if get_origin(kind) is dict:
        key, value = get_args(kind)
        return dict[key, _patch_type(value, choices, path)]  # type: ignore[valid-type,misc]
    return kind


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _entry_model(part: type[BaseModel], choices: Mapping[str, tuple[str, ...]], path: str) -> type[BaseModel]:
    """Derive the model of an entry of a list: a patch replaces the whole list, so an entry needs all keys."""
    fields: dict[str, Any] = {
        name: (Literal[choices[f"{path}.{name}"]], field)
        for name, field in part.model_fields.items()
        if f"{path}.{name}" in choices
    }
    return create_model(f"{part.__name__}Entry", __base__=part, __doc__=part.__doc__, **fields)


if TYPE_CHECKING:
    SettingsPatch = BaseModel
else:
    SettingsPatch = patch_model(config.Settings, CHOICES)


def parse_patch(values: Mapping[str, Any]) -> SettingsPatch:
    """Validate a nested patch, for instance one from the command line.

    Raises:
        ConfigError: a key is unknown or a value is out of range; one line names all of them.
    """
    try:
        return SettingsPatch.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"patch: {config.faults(error)}. See srpo_core/config/ for every key") from None
