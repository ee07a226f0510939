import importlib
import importlib.util
from pathlib import Path

import pytest

TINY = Path(__file__).resolve().parents[2] / "assets/tiny"


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def make_hpd():
    """Import the script assets/tiny/make_hpd.py as a module."""
    spec = importlib.util.spec_from_file_location("make_hpd", TINY / "make_hpd.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def recipe_module(monkeypatch):
    """Return a function that imports a module of the recipe by name."""
    monkeypatch.syspath_prepend(str(TINY / "recipe"))
    return lambda name: importlib.import_module(f"tiny_family.{name}")


@pytest.fixture
def data(recipe_module):
    """Import the module of the recipe that rebuilds the images."""
    return recipe_module("data")
