"""Fixtures: settings, and a data set from its source to the tables."""

from pathlib import Path

import pytest
from ingest_arguments import ingest_arguments

from srpo_core.config import load_settings
from srpo_core.stages.ingest import run
from srpo_core.workspace import data_versions

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def tiny():
    """The settings of the preset tiny."""
    return load_settings(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def ingest(tmp_path, monkeypatch):
    """Return a function that versions a source and ingests the version."""
    monkeypatch.chdir(tmp_path)

    def put(source, format_name, *, versioned=True, **changes):
        if versioned:
            data_versions.collect(Path(source), tmp_path / "data/own", format_name)
            source = "data/own"
        changed = {"source": str(source), "format": format_name, **changes}
        run(**ingest_arguments(changed, train_rollout_source="offline", evaluate_real_images=1000))

    return put
