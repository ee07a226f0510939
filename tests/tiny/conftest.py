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
    """The script assets/tiny/make_hpd.py as a module."""
    spec = importlib.util.spec_from_file_location("make_hpd", TINY / "make_hpd.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def data(monkeypatch):
    """The recipe's module that rebuilds the pictures."""
    monkeypatch.syspath_prepend(str(TINY / "recipe"))
    return importlib.import_module("tiny_family.data")
