import pyarrow.parquet as pq
import pytest

from srpo_core import artifacts
from srpo_core.data import tables
from srpo_core.data.tables import Pair, Prompt
from srpo_core.errors import ArtifactError

PROMPT_ROWS = [(0, "cat", "train", ""), (1, "dog", "validation", ""), (2, "road", "test", "photo")]


@pytest.fixture(autouse=True)
def run_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pair_row(number, split="test"):
    return number, split, f"prompt {number // 4}", f"{split}/a{number}", f"{split}/b{number}", ""


def test_prompts_are_read_by_split():
    assert tables.write_rows(artifacts.PROMPTS, tables.PROMPT_COLUMNS, PROMPT_ROWS) == 3
    assert tables.read_prompts("test") == [Prompt(2, "road", "test", "photo")]
    assert [prompt.text for prompt in tables.read_prompts("validation")] == ["dog"]


def test_pairs_are_read_by_split_in_order():
    tables.write_rows(artifacts.PAIRS, tables.PAIR_COLUMNS, [pair_row(0, "train"), pair_row(1), pair_row(2)])
    assert [pair.pair_id for pair in tables.read_pairs("test")] == [1, 2]
    assert tables.read_pairs("train", 5) == [Pair(0, "train", "prompt 0", "train/a0", "train/b0", "")]


def test_a_limit_selects_pairs_from_the_whole_table():
    tables.write_rows(artifacts.PAIRS, tables.PAIR_COLUMNS, map(pair_row, range(1000)))
    chosen = [pair.pair_id for pair in tables.read_pairs("test", 100)]
    assert len(set(chosen)) == 100
    assert chosen == sorted(chosen)
    assert min(chosen) < 50
    assert max(chosen) > 950
    assert chosen == [pair.pair_id for pair in tables.read_pairs("test", 100)]


def test_images_are_read_by_path_across_shards(monkeypatch, image):
    monkeypatch.setattr(tables, "ROWS_PER_FILE", 300)
    rows = [(f"train/{number:04d}.png", image((number % 256, 0, 9)), 6, 4) for number in range(700)]
    assert tables.write_images(iter(rows)) == 700
    shards = sorted(artifacts.IMAGES.iterdir())
    assert [pq.read_metadata(shard).num_rows for shard in shards] == [300, 300, 100]
    images = tables.read_images(["train/0650.png", "train/0001.png", "train/0650.png"])
    assert {path: found.getpixel((5, 3)) for path, found in images.items()} == {
        "train/0001.png": (1, 0, 9),
        "train/0650.png": (650 % 256, 0, 9),
    }
    assert all((found.mode, found.size) == ("RGB", (6, 4)) for found in images.values())
    assert pq.read_table(shards[2], columns=["image"])["image"][99].as_py() == rows[699][1]


def test_the_error_names_a_path_that_no_shard_contains(image):
    tables.write_images([("train/a.png", image("red"), 6, 4)])
    with pytest.raises(ArtifactError, match=r"has no image 'train/b\.png' \(1 of 2 are missing\)"):
        tables.read_images(["train/a.png", "train/b.png"])


def test_the_error_for_a_missing_table_names_the_stage_to_run():
    with pytest.raises(ArtifactError, match="run 'dvc repro ingest' first"):
        tables.read_prompts("train")


def test_the_error_names_a_damaged_table():
    artifacts.PAIRS.parent.mkdir(parents=True)
    artifacts.PAIRS.write_bytes(b"PAR1 but no more")
    with pytest.raises(ArtifactError, match=r"pairs\.parquet is damaged"):
        tables.read_pairs("train")


def test_an_empty_table_can_be_written_and_read():
    assert tables.write_rows(artifacts.PAIRS, tables.PAIR_COLUMNS, []) == 0
    assert tables.read_pairs("train") == []


def test_a_row_that_fails_leaves_no_table(tmp_path):
    def rows():
        yield PROMPT_ROWS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        tables.write_rows(artifacts.PROMPTS, tables.PROMPT_COLUMNS, rows())
    assert list(artifacts.PROMPTS.parent.iterdir()) == []
