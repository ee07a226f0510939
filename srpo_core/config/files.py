"""Read, patch and write params.yaml; read the presets in profiles/."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from srpo_core.config.settings import Settings, parse_settings
from srpo_core.config.yaml_text import format_yaml, read_yaml
from srpo_core.errors import ConfigError

PARAMS_FILE = Path("params.yaml")
NULL: Final = "null"  # in a patch: sets a setting to null. None keeps it, as an empty field of a form does


PROFILES_DIR = Path("profiles")


def load_settings(path: Path = PARAMS_FILE) -> Settings:
    """Read and validate a settings file. Raises `ConfigError` if it cannot be used."""
    return parse_settings(read_values(path), str(path))


def read_values(path: Path) -> Mapping[str, Any]:
    """Read a settings file without validation. Raises `ConfigError` if it is missing, no YAML, or no mapping."""
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        if not PROFILES_DIR.is_dir():
            raise ConfigError(
                f"{path} is missing, and this directory is no checkout: change to the top of the clone"
            ) from None
        raise ConfigError(f"{path} is missing: write it with 'srpo profile tiny > {path}'") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping of settings, found {'nothing' if values is None else type(values).__name__}"
        )
    return values


def profile_names(root: Path = Path()) -> list[str]:
    """Return the names of the presets in profiles/ of the checkout at `root`."""
    return sorted(path.stem for path in (root / PROFILES_DIR).glob("*.yaml"))


def profile_path(name: str, root: Path = Path()) -> Path:
    """Return the file of a preset. Raises `ConfigError`, which names the known presets."""
    known = profile_names(root)
    if name not in known:
        raise ConfigError(
            f"unknown profile {name!r}: known are {', '.join(known) or 'none'} (directory {PROFILES_DIR}/)"
        )
    return root / PROFILES_DIR / f"{name}.yaml"


def patched(values: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with a nested patch applied; an absent entry, or None, keeps the value, `NULL` sets it to None."""
    merged = dict(values)
    for key, new in patch.items():
        if new is None:
            continue
        old = merged.get(key)
        if new == NULL:
            merged[key] = None
        else:
            merged[key] = patched(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return merged


def patched_settings(directory: Path, *, profile: str | None, patch: Mapping[str, Any]) -> Settings:
    """Return the settings of a checkout with a patch applied; nothing is written.

    profile: a preset in profiles/ of `directory`; None takes its params.yaml.

    Raises:
        ConfigError: the profile is unknown, or a setting is unknown, missing or out of range.
    """
    settings, _ = _patched(_source(directory, profile), directory, patch)
    return settings


def write_settings(directory: Path, *, profile: str | None, patch: Mapping[str, Any]) -> Settings:
    """Write what `patched_settings` returns as params.yaml of a checkout, and return it.

    A patch that changes nothing copies the file byte by byte, comments included.

    Raises:
        ConfigError: the profile is unknown, or a setting is unknown, missing or out of range.
    """
    source, target = _source(directory, profile), directory / PARAMS_FILE
    settings, values = _patched(source, directory, patch)
    if values is not None:
        target.write_text(format_yaml(values), encoding="utf-8")
    elif source != target:
        shutil.copyfile(source, target)
    return settings


def _source(directory: Path, profile: str | None) -> Path:
    return directory / PARAMS_FILE if profile is None else profile_path(profile, directory)


def _patched(
    source: Path, directory: Path, patch: Mapping[str, Any]
) -> tuple[Settings, dict[str, Any] | None]:
    """Return the patched settings, and their values if the patch changes any."""
    values = read_values(source)
    merged = patched(values, patch)
    where = str(source.relative_to(directory))
    if merged == values:
        return parse_settings(values, where), None
    return parse_settings(merged, f"{where} with the patch"), merged
