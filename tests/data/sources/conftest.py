"""Fixtures: settings, and a data set from its source to the tables."""

from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.stages.ingest import run
from srpo_core.workspace import data_versions

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiny():
    """The settings of the preset tiny."""
    return load_settings(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def ingest(tmp_path, monkeypatch, tiny):
    """Return a function that versions a source and ingests the version."""
    monkeypatch.chdir(tmp_path)

    def put(source, format_name, *, versioned=True, **changes):
        if versioned:
            data_versions.collect(Path(source), tmp_path / "data/own", format_name)
            source = "data/own"
        run(
            seed=0,
            ingest=tiny.ingest.model_copy(update={"source": str(source), "format": format_name, **changes}),
        )

    return put
