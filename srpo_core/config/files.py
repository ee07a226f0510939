"""Read params.yaml and the presets in profiles/; merge changes into them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from srpo_core.config.settings import Settings, parse_settings
from srpo_core.errors import ConfigError

PARAMS_FILE = Path("params.yaml")


PROFILES_DIR = Path("profiles")


def load_settings(path: Path = PARAMS_FILE) -> Settings:
    """Read and validate a settings file. Raises `ConfigError` in one line when it cannot be used."""
    return parse_settings(read_values(path), str(path))


def read_values(path: Path) -> Mapping[str, Any]:
    """Read a settings file without checking its keys. Raises `ConfigError` in one line when it is no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not PROFILES_DIR.is_dir():
            raise ConfigError(
                f"{path} is missing, and this is no checkout: change to the clone's top"
            ) from None
        raise ConfigError(f"{path} is missing: write it with 'srpo profile tiny > {path}'") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} must hold a mapping of settings, found {'nothing' if values is None else type(values).__name__}"
        )
    return values


def profile_names(root: Path = Path()) -> list[str]:
    """The presets in profiles/ of the checkout at `root`, by name."""
    return sorted(path.stem for path in (root / PROFILES_DIR).glob("*.yaml"))


def profile_path(name: str, root: Path = Path()) -> Path:
    """The file of a preset in the checkout at `root`. Raises `ConfigError` naming the known ones."""
    known = profile_names(root)
    if name not in known:
        raise ConfigError(
            f"unknown profile {name!r}: known are {', '.join(known) or 'none'} (directory {PROFILES_DIR}/)"
        )
    return root / PROFILES_DIR / f"{name}.yaml"


def patched(values: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a nested patch over settings; an absent or None entry keeps the preset's value."""
    merged = dict(values)
    for key, new in patch.items():
        if new is None:
            continue
        old = merged.get(key)
        merged[key] = patched(old, new) if isinstance(old, Mapping) and isinstance(new, Mapping) else new
    return merged
