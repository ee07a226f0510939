"""Parse the option `--set KEY=VALUE`."""

from typing import Any

from srpo_core import errors


def parse_changes(changes: list[str]) -> dict[str, Any]:
    """Parse `a.b=1` to {"a": {"b": 1}}; values are YAML, and null is `config.NULL`. Raises `ConfigError` if one cannot be parsed."""
    from srpo_core import config

    patch: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise errors.ConfigError(f"--set {change}: write KEY=VALUE, for instance train.steps=20")
        nested = _value(change, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        patch = config.patched(patch, nested)
    return patch


def _value(change: str, text: str) -> Any:
    import yaml

    from srpo_core import config

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise errors.ConfigError(f"--set {change}: {text!r} is not a YAML value") from None
    if value is None and text.strip():
        return config.NULL
    if value is None:
        raise errors.ConfigError(f"--set {change}: no value after '='")
    return value
