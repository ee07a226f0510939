"""Fixtures: a checkout with the weights of the demo."""

import os
import shutil

import pytest
from spoiled_weights import FAMILY, ROOT


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A copy of the demo's models."""
    return shutil.copytree(ROOT / FAMILY, tmp_path_factory.mktemp("models") / "family")


@pytest.fixture
def checkout(family, tmp_path, monkeypatch):
    """A directory with the graph of stages, and links to the copy of the demo's models: `replace` a file, never write it."""
    shutil.copytree(family, tmp_path / FAMILY, copy_function=os.link)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
