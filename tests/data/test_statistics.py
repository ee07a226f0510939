import json
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.data.kept import open_kept
from srpo_core.data.statistics import lengths, read_findings, read_statistics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    for directory in ("train", "test", "benchmark"):
        (tmp_path / directory).mkdir()
    files = {
        "train.json": [
            {"prompt": "a cat", "file_path": ["a.png", "b.png"], "human_preference": [1, 0]},
            {"prompt": "a cat", "file_path": ["b.png", "c.png"], "human_preference": [0, 1]},
        ],
        "test.json": [
            {"prompt": "A Dog", "image_path": ["1.png", "2.png", "3.png"], "rank": [1, 1, 2]},
            {
                "prompt": "an owl",
                "image_path": ["4.png", "5.png"],
                "rank": [1, 2],
                "raw_annotations": [{"rank": [2, 1], "user_hash": "x"}],
            },
        ],
        "benchmark/anime.json": ["a dog"],
        "benchmark/photo.json": ["a hen", "a fox"],
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    ingest = load_settings(ROOT / "params.yaml").ingest
    return open_kept(ingest.model_copy(update={"source": str(tmp_path)}))


def test_records_pairs_ties_prompts_and_images_are_counted_by_split(source):
    found = read_statistics(source)
    train, test = found.splits["train"], found.splits["test"]
    assert (train.records, train.pairs, train.ties, train.prompts, train.images) == (2, 2, 0, ("a cat",), 3)
    assert (test.records, test.pairs, test.ties, test.prompts, test.images) == (
        2,
        3,
        1,
        ("A Dog", "an owl"),
        5,
    )
    assert found.styles() == {"anime": 1, "photo": 2}
    assert found.annotators.with_rank.share == 0


def test_a_record_that_cannot_be_read_is_left_out(source, tmp_path):
    records = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([*records, {"prompt": 7}]))
    assert read_statistics(source).splits["train"].records == 2


def test_a_record_has_the_style_of_its_prompt_in_the_benchmark(source):
    found = read_statistics(source)
    assert found.splits["test"].styles == {"anime": 1, "other": 1}
    assert found.splits["train"].styles == {"other": 2}


def test_the_lengths_of_prompts_are_summed_up():
    assert lengths(["x" * size for size in range(1, 102)]) == {
        "min": 1,
        "median": 51,
        "mean": 51,
        "p95": 96,
        "max": 101,
    }
    assert lengths(["four"]) == {"min": 4, "median": 4, "mean": 4, "p95": 4, "max": 4}
    assert lengths([]) == {}


def test_only_rules_that_found_something_are_findings(tmp_path):
    file = tmp_path / "runs/ingest/validation.json"
    file.parent.mkdir(parents=True)
    rules = {
        "tied_record": {
            "severity": "warning",
            "found": 3,
            "set_aside": 3,
            "first": "test.json: record 1: tie",
        },
        "bad_number": {"severity": "critical", "found": 0, "set_aside": 0, "first": None},
    }
    file.write_text(json.dumps({"prompts": [], "records": {"bad": 0, "read": {}, "rules": rules}}))
    assert read_findings(tmp_path) == {"tied_record": {"severity": "warning", "found": 3, "set_aside": 3}}
    file.write_text(json.dumps({"prompts": [], "pairs": []}))
    assert read_findings(tmp_path) == {}
