import io
import json
from pathlib import Path

import pytest
from fuzzing import chosen_seed
from PIL import Image


def encoded(colour, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


# nightly: other examples each time, as many again
@pytest.fixture(params=["fixed", pytest.param("random", marks=pytest.mark.nightly)])
def seed(request):
    """The seed of a fuzzed test: None for the same examples in every run, a new one or the given one at night."""
    option = request.config.getoption("--hypothesis-seed")
    return chosen_seed(option) if request.param == "random" else None


@pytest.fixture
def image():
    """Make the bytes of a small image of one colour."""
    return encoded


@pytest.fixture
def train_record():
    return {"human_preference": [0, 1], "prompt": "a red apple", "file_path": ["pear.png", "apple.png"]}


@pytest.fixture
def test_record():
    return {
        "prompt": "a cat",
        "image_path": ["dog.png", "cat.png", "cow.png"],
        "rank": [2, 1, 2],
        "raw_annotations": [{"rank": [2, 1, 2], "user_hash": "someone"}],
    }


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a JSON file below a source directory and returns the directory."""

    def put(name, value) -> Path:
        path = tmp_path / "hpd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return tmp_path / "hpd"

    return put
