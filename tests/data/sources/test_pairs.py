"""Pairs in tables: Pick-a-Pic's, HPDv3's and ImageReward's columns, others by a mapping, and webdatasets."""

import io
import json
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coloured_images import PREFERRED, REJECTED, encode, is_green

from srpo_core import artifacts
from srpo_core.data.decoding import read_image
from srpo_core.data.sources import open_source
from srpo_core.data.sources.layouts import PAIRS, require_columns
from srpo_core.data.sources.table_images import open_table_images
from srpo_core.data.sources.table_source import split_of
from srpo_core.data.tables import read_images, read_pairs, read_prompts
from srpo_core.errors import ConfigError, DataError


def pick_a_pic(prompt, number, *, label_0=1.0, has_label=True):
    colours = (PREFERRED, REJECTED) if label_0 == 1 else (REJECTED, PREFERRED)
    return {
        "are_different": True,
        "best_image_uid": f"uid-{number}-0",
        "caption": prompt,
        "has_label": has_label,
        "image_0_uid": f"uid-{number}-0",
        "image_1_uid": f"uid-{number}-1",
        "jpg_0": encode(2 * number, colours[0]),
        "jpg_1": encode(2 * number + 1, colours[1]),
        "label_0": label_0,
        "label_1": 1 - label_0,
        "ranking_id": number,
    }


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)


def require_green_preferred(split, source="data/own"):
    pairs = read_pairs(split)
    assert pairs
    read_images(pair.preferred for pair in pairs)
    images = {}
    with open_table_images(Path(source)) as stored:  # the table has no rejected images to train on
        for path in sorted({path for pair in pairs for path in (pair.preferred, pair.rejected)}):
            images[path] = read_image(stored.read(path.removeprefix(f"{split}/")))
    assert all(is_green(images[pair.preferred]) for pair in pairs)
    assert not any(is_green(images[pair.rejected]) for pair in pairs)
    return pairs


def test_pick_a_pic_is_read_from_several_parquet_files_in_row_groups(tmp_path, ingest):
    source = tmp_path / "source"
    rows = [pick_a_pic(f"a thing {number}", number, label_0=float(number % 2)) for number in range(40)]
    write_parquet(source / "data/train-00000-of-00002-af.parquet", rows[:17], row_group_size=7)
    write_parquet(source / "data/train-00001-of-00002-b0.parquet", rows[17:30], row_group_size=5)
    write_parquet(source / "data/test-00000-of-00001-c1.parquet", rows[30:36])
    write_parquet(source / "data/validation_unique-00000-of-00001-d2.parquet", rows[36:])
    (source / "README.md").write_text("# a card")
    (source / ".cache/huggingface").mkdir(parents=True)
    (source / ".cache/huggingface/x.json").write_text("{}")
    ingest(source, "pairs")
    assert [pair.prompt for pair in require_green_preferred("train")] == [f"a thing {n}" for n in range(30)]
    assert [pair.prompt for pair in require_green_preferred("test")] == [
        f"a thing {n}" for n in range(30, 36)
    ]
    assert [one.text for one in read_prompts("test")] == [f"a thing {n}" for n in range(30, 36)]


def test_ties_and_rows_that_nobody_compared_give_no_pair_and_are_counted(tmp_path, ingest, caplog):
    rows = [pick_a_pic(f"p{number}", number) for number in range(6)]
    rows += [pick_a_pic("unlabelled", 90, has_label=False), pick_a_pic("tie", 91, label_0=0.5)]
    write_parquet(tmp_path / "one/train.parquet", rows)
    write_parquet(tmp_path / "one/test.parquet", [pick_a_pic("q0", 20), pick_a_pic("q1", 21)])
    ingest(tmp_path / "one", "pairs")
    assert [pair.prompt for pair in read_pairs("train")] == [f"p{n}" for n in range(6)]
    assert "left out 1 rows whose column has_label says that nobody compared them" in caplog.text


def test_an_image_with_one_id_in_several_rows_is_stored_once(tmp_path, ingest):
    rows = [pick_a_pic("the same prompt", number) for number in range(3)]
    for row in rows[1:]:
        row |= {"jpg_0": rows[0]["jpg_0"], "image_0_uid": rows[0]["image_0_uid"]}
    write_parquet(tmp_path / "one/train.parquet", [*rows, pick_a_pic("another", 7)])
    write_parquet(tmp_path / "one/test.parquet", [pick_a_pic("q0", 20), pick_a_pic("q1", 21)])
    ingest(tmp_path / "one", "pairs")
    assert len({pair.preferred for pair in read_pairs("train")}) == 2
    require_green_preferred("train")


def test_prompts_of_a_source_with_one_split_are_held_out_by_a_hash_in_any_spelling(tmp_path, ingest):
    prompts = [f"a thing {number}" for number in range(60)]
    rows = [pick_a_pic(prompt, number) for number, prompt in enumerate(prompts)]
    rows += [pick_a_pic(f"  {prompt.upper()}", 100 + number) for number, prompt in enumerate(prompts)]
    write_parquet(tmp_path / "one.parquet", rows)
    ingest(tmp_path / "one.parquet", "pairs", test_share=0.3)
    held_out = [pair.prompt for pair in require_green_preferred("test")]
    trained = [pair.prompt for pair in require_green_preferred("train")]
    assert len(held_out) + len(trained) == 120
    assert 0.15 < len(held_out) / 120 < 0.45
    assert not {one.strip().lower() for one in held_out} & {one.strip().lower() for one in trained}
    assert len(read_prompts("test")) == len(held_out) / 2


def test_without_a_test_split_and_without_a_share_nothing_is_held_out_and_that_is_refused(
    tmp_path, tiny, findings
):
    write_parquet(tmp_path / "one.parquet", [pick_a_pic("p", 0)])
    settings = tiny.ingest.model_copy(
        update={"source": str(tmp_path / "one.parquet"), "format": "pairs", "test_share": 0.0}
    )
    with pytest.raises(DataError, match=r"no file is named after a held-out split .* ingest.test_share is 0"):
        open_source(settings, findings)


def write_images(directory, names):
    directory.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number, PREFERRED if "good" in name else REJECTED))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_hpdv3_prefers_the_first_of_its_two_paths_and_its_images_lie_beside_it(tmp_path, ingest, suffix):
    source = tmp_path / "hpdv3"
    for split, count in (("train", 5), ("test", 3)):
        names = [(f"images/{split}{n}-good.jpg", f"images/{split}{n}-bad.jpg") for n in range(count)]
        write_images(source, [name for pair in names for name in pair])
        records = [
            {"prompt": f"{split} {n}", "confidence": None, "path1": good, "path2": bad}
            for n, (good, bad) in enumerate(names)
        ]
        text = json.dumps(records) if suffix == "json" else "\n".join(map(json.dumps, records))
        (source / f"{split}.{suffix}").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with a BOM
    for versioned in (False, True):
        ingest("hpdv3", "pairs", versioned=versioned)
        where = "data/own" if versioned else "hpdv3"
        assert len(require_green_preferred("train", where)) == 5
        assert len(require_green_preferred("test", where)) == 3
    assert sorted(path.name for path in (tmp_path / "data/own").iterdir()) == [
        "images.tar",
        f"test.{suffix}",
        f"train.{suffix}",
    ]


def test_image_reward_ranks_several_images_of_a_prompt_in_neighbouring_rows(tmp_path, ingest):
    for split in ("train", "test"):
        rows = []
        for group in range(3):
            names = [f"{split}/{group}/{name}.jpg" for name in ("good", "bad0", "bad1")]
            write_images(tmp_path / "ir", names)
            rows += [
                {
                    "image_path": name,
                    "prompt_id": f"{split}-{group}",
                    "prompt": f"{split} {group}",
                    "rank": rank,
                }
                for name, rank in zip(names, (1, 2, 2), strict=True)
            ]
        write_parquet(tmp_path / f"ir/metadata-{split}.parquet", rows)
    ingest(tmp_path / "ir", "pairs")
    assert len(require_green_preferred("train")) == 6


def test_other_columns_are_given_by_a_mapping(tmp_path, ingest):
    rows = [
        f"text {n},images/{n}-{'good' if n % 2 else 'bad'}.jpg,images/{n}-{'bad' if n % 2 else 'good'}.jpg,{n % 2 ^ 1},kind{n % 2}"
        for n in range(30)
    ]
    write_images(tmp_path / "own/images", [f"{n}-{name}.jpg" for n in range(30) for name in ("good", "bad")])
    (tmp_path / "own/all.csv").write_text("\n".join(["q,left,right,winner,kind", *rows]))
    columns = {"prompt": "q", "image_a": "left", "image_b": "right", "preferred": "winner", "style": "kind"}
    ingest(tmp_path / "own", "pairs", columns=columns, test_share=0.4)
    pairs = [pair for split in ("train", "test") for pair in require_green_preferred(split)]
    assert len(pairs) == 30
    assert {one.style for one in read_prompts("test")} == {"kind0", "kind1"}


def test_a_webdataset_is_a_row_for_each_key(tmp_path, ingest):
    for split, count in (("train", 4), ("test", 3)):
        for shard in range(2):
            path = tmp_path / f"wds/{split}-{shard:06d}.tar"
            path.parent.mkdir(exist_ok=True)
            with tarfile.open(path, "w") as tar:
                for n in range(count):
                    number, winner = 10 * shard + n, str(n % 2)
                    colours = (PREFERRED, REJECTED) if winner == "0" else (REJECTED, PREFERRED)
                    parts = {"txt": f"{split} {number}".encode(), "cls": winner.encode()}
                    parts |= {f"{i}.jpg": encode(2 * number + i, colour) for i, colour in enumerate(colours)}
                    for column, content in parts.items():
                        member = tarfile.TarInfo(f"./{number:04d}.{column}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    ingest(tmp_path / "wds", "pairs")
    assert len(require_green_preferred("train")) == 8
    assert len(require_green_preferred("test")) == 6


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"caption": None}, "caption: must be a text, not NoneType"),
        ({"caption": " "}, "caption: is empty"),
        ({"label_0": None}, "label_0: must be a finite number, found None"),
        ({"label_0": float("nan")}, "label_0: must be a finite number, found nan"),
        ({"image_1_uid": "uid-1-0"}, "the images must differ from each other"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_with_its_file_and_number(tmp_path, ingest, change, rule):
    rows = [pick_a_pic(f"p{number}", number) for number in range(3)]
    rows[1] |= change
    write_parquet(tmp_path / "one/train.parquet", rows)
    write_parquet(tmp_path / "one/test.parquet", [pick_a_pic("q", 9)])
    with pytest.raises(DataError, match=re.escape(rule)) as caught:
        ingest("one", "pairs", versioned=False)
    assert str(caught.value).startswith("one/train.parquet: record 1: ")


@pytest.mark.parametrize("cell", [None, b"", {"bytes": None, "path": None}, {"bytes": b"", "path": "x.jpg"}])
def test_an_image_that_is_missing_in_a_row_is_the_fault_of_its_record(tmp_path, ingest, cell):
    rows = [pick_a_pic(f"p{number}", number) for number in range(3)]
    if isinstance(cell, dict):
        for row in rows:
            row["jpg_0"] = {"bytes": row["jpg_0"], "path": None}
    rows[1]["jpg_0"] = cell
    write_parquet(tmp_path / "one/train.parquet", rows)
    write_parquet(tmp_path / "one/test.parquet", [pick_a_pic("q", 9)])
    with pytest.raises(
        DataError,
        match=r"^one/train.parquet: record 1: image 'train.parquet/0000000001.jpg_0' of one is empty: it has no byte",
    ):
        ingest("one", "pairs", versioned=False)
    ingest("one", "pairs", versioned=False, on_bad_record="quarantine", max_bad_share=0.5)
    (line,) = artifacts.QUARANTINE.read_text().splitlines()
    assert (json.loads(line)["record"], json.loads(line)["rule"]) == (1, "missing_image")
    assert [pair.prompt for pair in read_pairs("train")] == ["p0", "p2"]


def test_unknown_and_missing_columns_are_named_with_those_of_the_file(tmp_path, ingest):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/all.csv").write_text("q,left,right\na,b,c\n")
    with pytest.raises(DataError, match=r"of no known data set: q, left, right. Say .* in ingest.columns"):
        ingest("own", "pairs", versioned=False)
    with pytest.raises(
        DataError, match=r"has no column 'wrong', which ingest.columns names: it has q, left, right"
    ):
        ingest(
            "own", "pairs", versioned=False, columns={"prompt": "q", "chosen": "left", "rejected": "wrong"}
        )


def test_a_mapping_that_does_not_say_what_is_preferred_is_refused():
    with pytest.raises(
        ConfigError, match=r"ingest.columns has image_a, image_b, prompt: it must have .*label_a"
    ):
        require_columns(PAIRS, {"prompt": "q", "image_a": "left", "image_b": "right"})


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002-ab.parquet", "train"),
        ("test_unique-00000-of-00001.parquet", "test_unique"),
        ("metadata-validation.parquet", "validation"),
        ("train/0001.tar", "train"),
        ("trains/0001.tar", ""),
        ("latest.csv", ""),
    ],
)
def test_the_split_of_a_file_is_read_from_its_name(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("given", ["own/all.csv", "own"])
def test_the_images_that_a_table_names_are_part_of_the_version(tmp_path, ingest, given):
    names = [f"images/{n}-{name}{'.ppm' if n % 2 else ''}" for n in range(20) for name in ("good", "bad")]
    write_images(tmp_path / "own", names)
    (tmp_path / "own/unrelated.key").write_text("of another use")
    rows = [
        f"./{good},{bad},thing {number}"
        for number, (good, bad) in enumerate(zip(names[::2], names[1::2], strict=True))
    ]
    (tmp_path / "own/all.csv").write_text("\n".join(["chosen,rejected,prompt", *rows]))
    ingest(tmp_path / given, "pairs", test_share=0.3)
    assert sum(len(require_green_preferred(split)) for split in ("train", "test")) == 20
    with tarfile.open(tmp_path / "data/own/images.tar") as packed:
        assert packed.getnames() == sorted(names)


def test_images_beside_an_archive_are_not_lost_in_a_version(tmp_path, ingest):
    write_images(tmp_path / "own", ["good.jpg", "bad.jpg"])
    (tmp_path / "own/all.csv").write_text("prompt,chosen,rejected\na thing,good.jpg,bad.jpg\n")
    with tarfile.open(tmp_path / "own/images.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("other.jpg"))
    with pytest.raises(
        DataError, match=r"has 2 images and captions beside images.tar, first bad.jpg: pack all"
    ):
        ingest(tmp_path / "own", "pairs")


def test_directories_may_be_named_like_tables(tmp_path, ingest):
    rows = [pick_a_pic(f"a thing {number}", number) for number in range(20)]
    for split, own in (("train", rows[:12]), ("test", rows[12:])):
        directory = tmp_path / f"of.tar/{split}.parquet"
        write_parquet(directory / "part-00000-1f.snappy.parquet", own[:4])
        write_parquet(directory / "part-00001-1f.snappy.parquet", own[4:])
        (directory / "_SUCCESS").touch()
        (directory / ".part-00000-1f.snappy.parquet.crc").write_bytes(b"crc")
    ingest(tmp_path, "pairs", versioned=False)
    assert len(require_green_preferred("train", ".")) == 12
    assert len(require_green_preferred("test", ".")) == 8
