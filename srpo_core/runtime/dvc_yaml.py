"""Read dvc.yaml, the one list of stages.

Other modules ask this one for the stages of a run; they keep no list of their own.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import ConfigError

DVC_FILE: Final = Path("dvc.yaml")
NEEDS_PASSED: Final = "a passed decision"
_CACHES: Final = "__pycache__"  # .dvcignore excludes it


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml.

    params: dotted keys of params.yaml; deps, outs: paths, in which `${key}` stands for a setting; outs includes metrics.
    """

    name: str
    description: str
    params: tuple[str, ...]
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    meta: Mapping[str, Any]

    @property
    def needs_passed(self) -> bool:
        """Whether the stage may run only on a model that the gate passed (`meta: {needs: a passed decision}`)."""
        return self.meta.get("needs") == NEEDS_PASSED

    def inputs(self, settings: Mapping[str, Any]) -> list[Path]:
        """Return the paths of `deps` with `${key}` replaced by the settings."""
        return [Path(resolve(dependency, settings)) for dependency in self.deps]

    def inputs_of_settings(self, settings: Mapping[str, Any]) -> list[str]:
        """Return the paths of `deps` that the settings name: data and weights."""
        return [resolve(dependency, settings) for dependency in self.deps if "${" in dependency]

    def watched(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the value of each key of `params`, as dvc.lock records them."""
        return {key: value_at(settings, key) for key in self.params}

    def reads(self, other: "Stage") -> bool:
        """Whether an output of `other` is an input of this stage, or contains one, or is contained in one."""
        outs = [Path(out) for out in other.outs]
        inputs = [Path(dependency) for dependency in self.deps]
        return any(one.is_relative_to(two) or two.is_relative_to(one) for one in inputs for two in outs)


def read_stages(root: Path = Path()) -> dict[str, Stage]:
    """Read the stages of the project at `root`, by name, in the order of the file.

    Raises:
        ConfigError: dvc.yaml is missing, is not YAML, or has no stages.
    """
    path = root / DVC_FILE
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{path} is missing: change to the top of the clone, or restore it with git"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{error}; or restore it with git") from None
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path} has no stages: restore it with git")
    try:
        return {name: _stage(name, entry) for name, entry in stages.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} has a stage that cannot be read ({error}): restore it with git") from None


def argument_name(key: str) -> str:
    """Return the name of the argument by which a stage's `run` receives a setting: train.steps is `train_steps`."""
    return key.replace(".", "_")


def value_at(settings: Mapping[str, Any], key: str) -> Any:
    """Look up a dotted key in nested settings; `a[0].b` is a key of the first entry of a list, as in DVC.

    Raises:
        ConfigError: there is no such key.
    """
    found: Any = settings
    for part in key.replace("[", ".").replace("]", "").split("."):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise ConfigError(f"{DVC_FILE} names the setting {key!r}, which params.yaml does not have")
    return found


def values_below(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return those of some dotted keys that nested settings have, with their values."""
    found = {key: settings[key] for key in keys if key in settings}
    for name, value in settings.items():
        if isinstance(value, Mapping) and (below := _below(name, keys)):
            found |= {f"{name}.{key}": inner for key, inner in values_below(value, below).items()}
    return found


def without_keys(settings: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """Return a copy of nested settings without some dotted keys, whether or not it has them."""
    return {
        name: without_keys(value, below)
        if isinstance(value, Mapping) and (below := _below(name, keys))
        else value
        for name, value in settings.items()
        if name not in keys
    }


def resolve(template: str, settings: Mapping[str, Any]) -> str:
    """Replace `${a.b}` in a path of dvc.yaml by the setting, as DVC does.

    Raises:
        ConfigError: there is no such setting.
    """
    return re.sub(r"\$\{([\w.\[\]]+)\}", lambda match: str(value_at(settings, match[1])), template)


def files_below(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a directory that DVC hashes, sorted."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and _CACHES not in file.parts:
            yield file


def _below(name: str, keys: Collection[str]) -> list[str]:
    """Return the rest of those dotted keys that begin with a name."""
    return [key.removeprefix(f"{name}.") for key in keys if key.startswith(f"{name}.")]


def _stage(name: str, entry: Mapping[str, Any]) -> Stage:
    outs = [_path(out) for kind in ("outs", "metrics") for out in entry.get(kind, ())]
    return Stage(
        name=name,
        description=entry.get("desc", name),
        params=tuple(entry.get("params", ())),
        deps=tuple(entry.get("deps", ())),
        outs=tuple(outs),
        meta=entry.get("meta", {}),
    )


def _path(out: str | Mapping[str, Any]) -> str:
    """An output is a path, or a mapping of a path to its options."""
    return out if isinstance(out, str) else next(iter(out))
