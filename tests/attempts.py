"""Records of attempts to run a stage, as `srpo stage` writes them."""

from srpo_core.artifacts import home
from srpo_core.runtime.timings import Attempt, directory_of, experiment_key, key_of


def record_attempt(stage, hours, **changes):
    """Record an attempt with the settings and inputs of the current directory; hours: of wall time."""
    values = {
        "experiment": experiment_key(),
        "began": "2026-11-30T12:00:00+00:00",
        "seconds": 3600 * hours,
        "devices": 1,
        "kind": "machine",
        "price": 2.5,
        "currency": "USD",
        "completed": True,
        "continues": False,
    }
    key, values = key_of(stage), values | changes
    directory = directory_of(stage, key)
    directory.mkdir(parents=True, exist_ok=True)
    note = home() / "timings/keys" / values["experiment"] / stage
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(key)
    path = directory / f"{1 + len(list(directory.iterdir())):06d}.json"
    path.write_text(Attempt(**values).model_dump_json())
