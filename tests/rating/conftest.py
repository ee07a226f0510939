"""A home directory of its own for each test."""

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """The home directory; paths are relative to an empty directory beside it."""
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"
