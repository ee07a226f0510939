"""The arguments of stage ingest in tests: those of the preset tiny, with changes."""

from operator import attrgetter
from pathlib import Path

from srpo_core.config import load_settings
from srpo_core.runtime.dvc_yaml import argument_name, read_stages

ROOT = Path(__file__).parents[1]


def ingest_arguments(changed=None, **changes):
    """Return the arguments that `params:` of dvc.yaml names; changed: of the settings of ingest, changes: of arguments."""
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    params = read_stages(ROOT)["ingest"].params
    arguments = {argument_name(key): attrgetter(key)(settings) for key in params}
    ingest = settings.ingest.model_copy(update=changed or {})
    return arguments | {"ingest": ingest} | changes
