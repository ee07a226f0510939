"""Parse the option `--set KEY=VALUE`."""

from collections.abc import Mapping
from typing import Any, Final

from srpo_core import errors

_FORM: Final = "write KEY=VALUE, for instance --set train.steps=20"


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """Parse `a.b=1` to {"a": {"b": 1}}; values are YAML, and null is `config.NULL`. Raises `ConfigError` if one cannot be parsed."""
    patch: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise errors.ConfigError(f"--set {change}: no value; {_FORM}")
        if not all(part.strip() == part != "" for part in key.split(".")):
            raise errors.ConfigError(f"--set {change}: the key {key!r} has an empty part or a blank; {_FORM}")
        if "[" in key:
            name = key.partition("[")[0]
            raise errors.ConfigError(
                f"--set {change}: an entry of a list cannot be set alone; set the whole list, for instance "
                f"--set '{name}=[...]'"
            )
        nested = _value(change, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        patch = _together(patch, nested)
    return patch


def parse_ingest_changes(changes: list[str], command: str) -> dict[str, Any]:
    """Parse changes of ingest alone, without `source` and `format`, and return them by key of ingest.

    command: for the message.

    Raises:
        ConfigError: a change cannot be parsed, or is of something else.
    """
    patch = parse_changes(changes)
    ingest = dict(patch.pop("ingest", {}))
    if wrong := [*patch, *(f"ingest.{key}" for key in ("source", "format") if key in ingest)]:
        raise errors.ConfigError(
            f"--set {wrong[0]}: {command!r} takes settings of ingest, without source and format, which have their own "
            "options"
        )
    return ingest


def _together(patch: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return one patch of both; `other` wins. Unlike `config.patched`, it leaves `config.NULL` for the settings."""
    merged = dict(patch)
    for key, new in other.items():
        old = merged.get(key)
        merged[key] = _together(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return merged


def _value(change: str, text: str) -> Any:
    from srpo_core import config
    from srpo_core.config.yaml_text import parse_yaml

    try:
        value = parse_yaml(text, "the value")
    except errors.ConfigError as error:
        raise errors.ConfigError(f"--set {change}: {text!r} is not a YAML value ({error})") from None
    if value is None and text.strip():
        return config.NULL
    if value is None:
        raise errors.ConfigError(f"--set {change}: no value after '='; {_FORM}")
    return value
