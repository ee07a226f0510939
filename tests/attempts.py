"""Records of attempts to run a stage, as `srpo stage` writes them."""

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
    directory = directory_of(stage, key_of(stage))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{1 + len(list(directory.iterdir())):06d}.json"
    path.write_text(Attempt(**(values | changes)).model_dump_json())
