from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.data.changes import EXAMPLES, benchmark_changes, record_changes, replaced_images
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.statistics import open_readable

ROOT = Path(__file__).resolve().parents[2]


def choice(prompt, images="ab", ranks=(0, 1), record=0):
    return Choice("train.json", record, prompt, tuple(f"{name}.png" for name in images), ranks)


def counts(changes):
    return changes.added, changes.removed, changes.changed, changes.unchanged


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([choice("x")], [choice("x", record=7)], (0, 0, 0, 1)),
        (
            [choice("x")],
            [choice("x", "ba", (1, 0))],
            (0, 0, 0, 1),
        ),  # the same preference, written the other way
        ([choice("x", ranks=(0, 1))], [choice("x", ranks=(3, 9))], (0, 0, 0, 1)),
        ([choice("x")], [choice("x", ranks=(1, 0))], (0, 0, 1, 0)),
        ([choice("x")], [choice("x", ranks=(1, 1))], (0, 0, 1, 0)),
        ([choice("x")], [choice("y")], (1, 1, 0, 0)),
        ([choice("x")], [choice("x", "ac")], (1, 1, 0, 0)),
        ([], [choice("x")] * 2, (2, 0, 0, 0)),
        ([choice("x")] * 3, [choice("x")], (0, 2, 0, 1)),
        # of two records that contradict each other, one was turned round
        ([choice("x"), choice("x", ranks=(1, 0))], [choice("x")] * 2, (0, 0, 1, 1)),
        # the equal one is found, in whatever order they stand
        ([choice("x"), choice("x", ranks=(1, 0))], [choice("x", ranks=(1, 0))], (0, 1, 0, 1)),
        ([choice("x"), choice("y")], [choice("y"), choice("x")], (0, 0, 0, 2)),
    ],
)
def test_records_are_compared_by_prompt_and_images(old, new, expected):
    assert counts(record_changes(old, new, set())) == expected


def test_a_record_with_a_replaced_image_is_changed():
    records = [choice("x", "ab"), choice("y", "cd")]
    assert counts(record_changes(records, records, {"c.png"})) == (0, 0, 1, 1)


def test_examples_are_the_first_different_prompts():
    new = [choice(f"prompt {number // 2}") for number in range(40)]
    changes = record_changes([], new, set())
    assert changes.examples["added"] == [f"prompt {number}" for number in range(EXAMPLES)]


def test_benchmark_prompts_are_compared_as_a_reader_sees_them():
    old = [BenchmarkPrompt("anime.json", number, text, "anime") for number, text in enumerate("abc")]
    new = [
        BenchmarkPrompt("anime.json", 0, " A ", "anime"),
        BenchmarkPrompt("photo.json", 0, "b", "photo"),
        BenchmarkPrompt("photo.json", 1, "d", "photo"),
    ]
    assert counts(benchmark_changes(old, new)) == (1, 1, 1, 1)


def test_images_with_other_bytes_under_the_same_name_are_found(tmp_path):
    ingest, sources = load_settings(ROOT / "params.yaml").ingest, []
    for number, content in enumerate((b"one", b"two")):
        root = tmp_path / f"set{number}"
        for directory in ("train", "test", "benchmark"):
            (root / directory).mkdir(parents=True)
        (root / "test.json").write_text("[]")
        (root / "benchmark/anime.json").write_text("[]")
        (root / "train.json").write_text(
            '[{"prompt": "x", "file_path": ["a.png", "b.png"], "human_preference": [1, 0]}]'
        )
        (root / "train/a.png").write_bytes(b"same")
        (root / "train/b.png").write_bytes(content)
        sources.append(open_readable(ingest.model_copy(update={"source": str(root)})))
    assert replaced_images(*sources, "train") == {"b.png"}
    assert replaced_images(sources[0], sources[0], "train") == set()
