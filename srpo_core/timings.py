"""What stages took, in an untracked file: times belong to a machine, not to a result."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from srpo_core.artifacts import home, sha256
from srpo_core.config import PARAMS_FILE, ResourceSettings
from srpo_core.resume import resolve

DIGITS: Final = 12
SECONDS_PER_HOUR: Final = 3600
SMALL_BYTES: Final = 2**20  # a larger input counts by its size: weights would take minutes to read
# the stages that use more than one device, and the setting that says how many
WORKERS: Final[Mapping[str, str]] = {
    "train": "train_workers",
    "evaluate": "draw_workers",
}


def timings_file() -> Path:
    """One JSON object per line: stage, key, seconds, devices, kind."""
    return home() / "timings/stages.jsonl"


def note_stage(stage: str, seconds: float, resources: ResourceSettings) -> None:
    """Add what a stage took that has just ended well."""
    path = timings_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    devices = getattr(resources, WORKERS[stage]) if stage in WORKERS else 1
    entry = {
        "stage": stage,
        "key": key_of(stage),
        "seconds": round(seconds, 1),
        "devices": devices,
        "kind": "GPU" if resources.use_gpu else "CPU process",
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def key_of(stage: str) -> str:
    """A hash of a stage's settings and inputs, by which a later reader finds the times of this very run."""
    settings = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    definition = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    parts = {name: settings[name] for name in definition.get("params", ())}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for dependency in definition["deps"]:
        root = Path(resolve(dependency, settings))
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.is_file():
                size = path.stat().st_size
                digest.update(f"{path} {size} {sha256(path) if size <= SMALL_BYTES else ''}\n".encode())
    return digest.hexdigest()[:DIGITS]


def costs(stages: Sequence[str]) -> list[dict[str, Any]]:
    """Wall and device hours of stages as they are set up here; one that has no times here is left out.

    Of several entries the last counts, so a stage that was killed and went on shows what its last part took.
    """
    path = timings_file()
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    last = {(entry["stage"], entry["key"]): entry for entry in map(json.loads, lines)}
    found = (last.get((stage, key_of(stage))) for stage in stages)
    return [
        {
            **entry,
            "wall_hours": entry["seconds"] / SECONDS_PER_HOUR,
            "device_hours": entry["seconds"] / SECONDS_PER_HOUR * entry["devices"],
        }
        for entry in found
        if entry
    ]
