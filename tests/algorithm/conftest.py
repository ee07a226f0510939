from pathlib import Path

import pytest

from srpo_core.config import load_settings


@pytest.fixture(scope="session")
def tiny_train():
    return load_settings(Path(__file__).parents[2] / "profiles/tiny.yaml").train
