"""What `srpo data show`, `diff` and `agreement` count is what stage ingest keeps."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
from ingest_arguments import ingest_arguments
from PIL import Image

from srpo_core import artifacts
from srpo_core.config import ControlWords, load_settings
from srpo_core.data.decoded_images import read_decoded
from srpo_core.data.kept import open_kept
from srpo_core.data.statistics import count_rows, read_findings, read_statistics
from srpo_core.data.tables import read_pairs, read_prompts
from srpo_core.errors import DataError
from srpo_core.report.data_page import choose_samples, write_data_page
from srpo_core.stages.ingest import run

ROOT = Path(__file__).resolve().parents[2]


def png(number, size=(24, 24)):
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, 80, number // 256)).save(file, "PNG")
    return file.getvalue()


def noise(side=1024):
    """Make a large image of 3 MB: pixels that hardly shrink."""
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), Random(0).randbytes(3 * side * side)).save(
        file, "PNG", compress_level=0
    )
    return file.getvalue()


def write_tar(path, images):
    with tarfile.open(path, "w") as archive:
        for name, content in images.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def train(prompt, first, second, preferred=0):
    order = [1, 0] if preferred == 0 else [0, 1]
    return {"prompt": prompt, "file_path": [first, second], "human_preference": order}


def test_of(prompt, *images, rank=None):
    return {"prompt": prompt, "image_path": list(images), "rank": rank or list(range(len(images)))}


test_of.__test__ = False


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run stage ingest on a set in which each kind of record is set aside; return the directory and its settings."""
    directory = tmp_path_factory.mktemp("made")
    source = directory / "hpd"
    (source / "benchmark").mkdir(parents=True)
    names = [f"{number}.png" for number in range(40)]
    trained = [train(f"train {number}", names[2 * number], names[2 * number + 1]) for number in range(8)]
    trained += [
        trained[0],  # doubled
        train("train 1", names[2], names[3], 1),  # contradicts the second record, so both are set aside
        train("lost", "gone.png", names[20]),
        train("cut", "cut.png", names[21]),
        {"prompt": "tied", "file_path": names[22:24], "human_preference": [1, 1]},
        {"prompt": 7},
    ]
    images = {name: png(number) for number, name in enumerate(names)}
    write_tar(source / "train.tar", images | {"cut.png": png(99)[:60]})
    tested = [test_of(f"test {number}", f"{2 * number}.png", f"{2 * number + 1}.png") for number in range(6)]
    tested += [
        test_of("train 2", "0.png", "3.png"),
        test_of("no image", "gone.png", "5.png"),
        test_of("broken", "cut.png", "6.png"),
        test_of("equal", "0.png", "1.png", rank=[1, 1]),
    ]
    own = {f"{number}.png": png(1000 + number) for number in range(12)} | {"0.png": noise()}
    write_tar(source / "test.tar", own | {"cut.png": png(1099)[:60]})
    (source / "train.json").write_text(json.dumps(trained))
    (source / "test.json").write_text(json.dumps(tested))
    (source / "benchmark/photo.json").write_text(json.dumps(["train 2", "b one", "b two", "B One"]))
    rules = load_settings(ROOT / "params.yaml").ingest.rules
    changed = {
        "source": "hpd",
        "check_images": "all",
        "on_bad_record": "quarantine",
        "max_bad_share": 1.0,
        "validation_share": 0.0,
        "rules": rules.model_copy(update={"contradiction": "critical"}),
    }
    given = ingest_arguments(changed, train_rollout_source="offline", evaluate_real_images=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        run(**given)
    return directory, given["ingest"]


@pytest.fixture
def ingested(made, monkeypatch):
    monkeypatch.chdir(made[0])
    return made[1]


def test_the_records_counted_are_those_that_ingest_keeps(ingested):
    found = read_findings(Path())
    for rule in (
        "doubled_record",
        "contradiction",
        "missing_image",
        "unreadable_image",
        "trained_test_prompt",
    ):
        assert found[rule]["set_aside"], rule
    kept = open_kept(ingested, found)
    statistics, counts = read_statistics(kept), count_rows(Path())
    assert {split: one.pairs for split, one in statistics.splits.items()} == counts["pairs"]
    assert counts["pairs"] == {"test": 6, "train": 7}
    for split in ("train", "test"):
        pairs = [(choice.prompt, *pair) for choice in kept.choices(split) for pair in choice.pairs()]
        stored = [
            (one.prompt, *(name.removeprefix(f"{split}/") for name in (one.preferred, one.rejected)))
            for one in read_pairs(split)
        ]
        assert pairs == stored
    assert [entry.prompt for entry in kept.benchmark()] == [one.text for one in read_prompts("test")]
    assert [entry.prompt for entry in kept.benchmark()] == ["b one", "b two"]


def test_the_page_of_a_version_with_bad_images_is_written(ingested, tmp_path):
    findings = read_findings(Path())
    kept = open_kept(ingested, findings)
    samples = choose_samples(kept)
    assert {one.prompt for one in samples} == {f"test {number}" for number in range(6)}
    words = ControlWords.of(["Ink"], ["3D"])
    write_data_page(tmp_path / "page.html", source=kept, tag="data/a/1", words=words, findings=findings)
    assert (tmp_path / "page.html").read_text().count("data:image/") == 12
    assert (tmp_path / "page.html").stat().st_size < 300_000  # large images are scaled down


def test_images_are_read_only_if_records_were_set_aside_because_of_them(ingested, tmp_path):
    source = shutil.copytree("hpd", tmp_path / "hpd")
    ingested = ingested.model_copy(update={"source": str(source)})
    for split in ("train", "test"):
        (source / f"{split}.tar").write_bytes(b"no archive")
    found = {"tied_record": {"set_aside": 2}, "equal_images": {"set_aside": 0}}
    assert read_statistics(open_kept(ingested, found)).splits["test"].records == 8
    with pytest.raises(DataError, match=r"test.tar|train.tar"):
        open_kept(ingested, {"missing_image": {"set_aside": 1}})


def test_an_image_that_cannot_be_shown_is_named_in_one_line(ingested):
    with open_kept(ingested).images("test") as stored:
        with pytest.raises(DataError, match=r"^hpd/test.tar: has no image 'gone.png'$"):
            read_decoded(stored, "gone.png")
        with pytest.raises(DataError, match=r"^hpd/test.tar: has no image 'gone.png'$"):
            stored.read("gone.png")
        with pytest.raises(DataError, match=r"^hpd/test.tar: image 'cut.png' cannot be decoded: [^\n]+$"):
            read_decoded(stored, "cut.png")
    assert pq.read_table(artifacts.PROMPTS).num_rows
