from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_core.config import load_settings
from srpo_core.data.changes import (
    EXAMPLES,
    benchmark_changes,
    named_by_content,
    record_changes,
    replaced_images,
)
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.kept import open_kept

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
        sources.append(open_kept(ingest.model_copy(update={"source": str(root)})))
    assert replaced_images(*sources, "train") == {"b.png"}
    assert replaced_images(sources[0], sources[0], "train") == set()


def test_a_row_inserted_before_others_leaves_the_images_of_a_table_what_they_are(tmp_path):
    ingest = load_settings(ROOT / "params.yaml").ingest
    columns = {
        "prompt": "caption",
        "image_a": "jpg_0",
        "image_b": "jpg_1",
        "label_a": "label_0",
        "label_b": "label_1",
    }
    rows = [
        {
            "caption": f"thing {number}",
            "jpg_0": {"bytes": b"first %d" % number, "path": None},
            "jpg_1": {"bytes": b"second %d" % number, "path": None},
            "label_0": 1.0,
            "label_1": 0.0,
        }
        for number in range(13)
    ]
    edited = [*rows[:5], {**rows[5], "label_0": 0.0, "label_1": 1.0}, *rows[6:]]
    edited[7] = {**rows[7], "jpg_1": {"bytes": b"another", "path": None}}
    sources = []
    for number, own in enumerate((rows[1:], edited)):
        path = tmp_path / f"set{number}/train.parquet"
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(own), path, row_group_size=4)
        changed = {"source": str(path.parent), "format": "pairs", "columns": columns, "test_share": 0.5}
        sources.append(open_kept(ingest.model_copy(update=changed)))
    total = [0, 0, 0, 0]
    for split in ("train", "test"):
        assert replaced_images(*sources, split) == set()
        found = counts(record_changes(*(named_by_content(one, split) for one in sources), set()))
        total = [one + other for one, other in zip(total, found, strict=True)]
    assert total == [2, 1, 1, 10]
