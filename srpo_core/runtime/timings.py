"""Record how long stages take, in an untracked file: times belong to a machine, not to a result."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import home
from srpo_core.config import ResourceSettings
from srpo_core.errors import ArtifactError
from srpo_core.runtime.resume import SMALL_BYTES, fingerprint

SECONDS_PER_HOUR: Final = 3600
# the stages that use more than one device, and the setting with their number
WORKERS: Final[Mapping[str, str]] = {
    "train": "train_workers",
    "select": "generate_workers",
    "evaluate": "generate_workers",
}


def timings_file(root: Path | None = None) -> Path:
    """Return the file of times, below `root` or `home()`. Each line is a JSON object: stage, key, seconds, devices, kind."""
    return (root or home()) / "timings/stages.jsonl"


def note_stage(stage: str, seconds: float, resources: ResourceSettings) -> None:
    """Append the time of a stage that has just succeeded."""
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
    """Hash a stage's settings and inputs; the key by which the times of this run are found again."""
    return fingerprint(stage, by_size_from=SMALL_BYTES)


def costs(stages: Sequence[str], root: Path | None = None) -> list[dict[str, Any]]:
    """Return wall and device hours of stages with the current settings; stages without a time are left out.

    Of several entries the last counts, so a stage that was killed and resumed has the time of its last part.
    """
    path = timings_file(root)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    last = {(entry["stage"], entry["key"]): entry for entry in map(json.loads, lines)}
    found = (last.get((stage, key)) for stage in stages if (key := _key_if_there(stage)))
    return [
        {
            **entry,
            "wall_hours": entry["seconds"] / SECONDS_PER_HOUR,
            "device_hours": entry["seconds"] / SECONDS_PER_HOUR * entry["devices"],
        }
        for entry in found
        if entry
    ]


def _key_if_there(stage: str) -> str | None:
    try:
        return key_of(stage)
    except ArtifactError:  # without its inputs a stage has not run with these settings
        return None
