"""Provenance of a release: its version name, the check against dvc.lock, the git state and the environment."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import sha256
from srpo_core.config import PARAMS_FILE, Settings, load_settings, parse_settings, read_values
from srpo_core.config.yaml_text import read_yaml
from srpo_core.credentials import mask_file_content
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.release.layout import require_existing
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.workspace.git import try_git

LOCK: Final = Path("dvc.lock")
DIGITS: Final = 12
# DVC ignores these in a tracked directory, for instance in one that was cloned
_IGNORED_BY_DVC: Final = frozenset({".git", ".hg", ".dvc"})
LIBRARIES: Final = ("torch", "diffusers", "transformers", "safetensors", "gguf", "ray", "dvc", "numpy")


def version_of(name: str, root: Path) -> str:
    """Return the version that dvc.lock describes: `name` and the first 12 hex digits of the lock's SHA-256."""
    return f"{name}-{sha256(require_existing(root, LOCK))[:DIGITS]}"


def require_reproduced(root: Path, paths: Iterable[Path]) -> None:
    """Check `paths` and params.yaml against dvc.lock, whose hash becomes the version's name.

    Raises:
        ArtifactError: a file or a setting differs from what dvc.lock records.
    """
    advice = "run 'dvc repro' first"
    stages = _locked_stages(root)
    recorded: dict[str, str] = {}
    for name, stage in stages.items():
        for entry in (*stage.get("deps", ()), *stage.get("outs", ())):
            if recorded.setdefault(entry["path"], entry.get("md5", "")) != entry.get("md5", ""):
                raise ArtifactError(
                    f"{LOCK}: stage {name} was not run with the latest {entry['path']}: {advice}"
                )
    for path in paths:
        if recorded.get(str(path)) != _dvc_md5(require_existing(root, path)):
            raise ArtifactError(f"{path} differs from what {LOCK} records: {advice}")
    values = read_values(root / PARAMS_FILE)
    settings = load_settings(root / PARAMS_FILE)
    for name, stage in stages.items():
        locked = stage.get("params", {}).get(str(PARAMS_FILE), {})
        recorded_values: Mapping[str, Any] = reduce(_replaced, locked.items(), values)
        if parse_settings(recorded_values, str(LOCK)) != settings:
            raise ArtifactError(
                f"{PARAMS_FILE} differs from the settings that stage {name} was run with: {advice}"
            )


def _replaced(values: Mapping[str, Any], setting: tuple[str, Any]) -> Mapping[str, Any]:
    """Return settings with one of them, a dotted key and its value, replaced."""
    key, value = setting
    first, _, rest = key.partition(".")
    return {**values, first: _replaced(values[first], (rest, value)) if rest else value}


def git_state(root: Path) -> dict[str, Any]:
    """Return the commit, the diff of tracked files against it (None: no difference), and the names of other files.

    For files that the commit does not have, added or untracked, only names are recorded: a run's workspace contains
    every untracked file of the checkout, and one may hold a password. Credentials in the diff, for instance the key of
    a remote in .dvc/config, are masked; `git apply` then needs them put back. All three are None outside a git checkout.
    """
    revision = try_git(root, "rev-parse", "HEAD")
    if revision is None:
        return {"revision": None, "diff": None, "untracked": None}
    place = ("HEAD", "--", ".", f":(exclude){LOCK}")
    changes = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--no-relative")
    diff = try_git(root, *changes, "--binary", "--submodule=short", "--diff-filter=a", *place)
    added = try_git(root, *changes, "--name-only", "-z", "--diff-filter=A", *place) or ""
    untracked = try_git(root, "ls-files", "--others", "--exclude-standard", "-z") or ""
    names = {*added.split("\0"), *untracked.split("\0")} - {"", str(LOCK)}
    return {
        "revision": revision.strip(),
        "diff": mask_file_content(diff) if diff else None,
        "untracked": sorted(names),
    }


def origins(root: Path, settings: Settings) -> dict[str, Any]:
    """Return what a run was made from: its data, base and rewards, each with the MD5 that dvc.lock records, or None.

    The first 12 digits of the MD5 of data that `srpo data` has versioned are those of their tag, unless other settings
    read another version of the same files (`data_versions.version_tag`).
    """
    recorded = {
        entry["path"]: entry.get("md5")
        for stage in _locked_stages(root).values()
        for entry in (*stage.get("deps", ()), *stage.get("outs", ()))
    }

    def origin(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "md5": recorded.get(path)}

    return {
        "data": origin(settings.ingest.source, settings.ingest.source),
        "base": origin(settings.release.base_model, settings.model.path),
        "rewards": [origin(one.path, one.path) | {"weight": one.weight} for one in settings.rewards],
    }


def environment(root: Path) -> dict[str, Any]:
    """Describe the publishing machine: Python, libraries, SHA-256 of requirements.lock, hardware, name of each GPU.

    The stages of the run may have been computed on other machines (`RAY_ADDRESS`).
    """
    import psutil
    import torch

    lock = root / "requirements.lock"
    return {
        "of": "the machine that published",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "requirements_lock": sha256(lock) if lock.is_file() else None,
    }


def _processor() -> str:
    """Return the processor's name from /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _locked_stages(root: Path) -> dict[str, Any]:
    """Return the entries in dvc.lock of the stages that dvc.yaml has now."""
    path = require_existing(root, LOCK)
    try:
        locked = read_yaml(path)["stages"]
        return {name: locked[name] for name in read_stages(root)}
    except KeyError as error:
        raise ArtifactError(f"{LOCK} does not record {error}: run 'dvc repro' first") from None
    except (ConfigError, TypeError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is damaged ({cause}): remove it and run 'dvc repro'") from None


def _dvc_md5(path: Path) -> str:
    """Return the digest with which DVC 3 records a file or a directory."""
    if path.is_file():
        return _md5(path)
    entries = [{"md5": _md5(file), "relpath": name} for name, file in _files_below(path)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _files_below(directory: Path) -> Iterator[tuple[str, Path]]:
    files = ((path.relative_to(directory), path) for path in directory.rglob("*") if path.is_file())
    yield from sorted((name.as_posix(), path) for name, path in files if not _IGNORED_BY_DVC & {*name.parts})


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
