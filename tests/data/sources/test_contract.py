"""What every format of a data set keeps, and that a new one is one entry of the registry."""

import csv
import io
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from ingest_arguments import ingest_arguments
from PIL import Image

from srpo_core.config import load_settings
from srpo_core.data import sources
from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.sources import SOURCES, SourceFormat, open_source
from srpo_core.data.tables import read_images, read_pairs, read_prompts
from srpo_core.errors import ConfigError
from srpo_core.preflight.consistency import require_consistent
from srpo_core.stages.ingest import run
from srpo_core.workspace import data_versions

ROOT = Path(__file__).resolve().parents[3]


class Colours:
    """A format of this test: a table (split, prompt, preferred colour, rejected colour), and images of one colour."""

    def __init__(self, where, ingest, findings):
        self._file = where / "colours.tsv"
        self._ingest, self._findings = ingest, findings

    def _rows(self):
        with self._file.open(newline="") as file:
            yield from enumerate(csv.reader(file, delimiter="\t"))

    def choices(self, split):
        for index, (own, prompt, *colours) in self._rows():
            if own == split:
                self._findings.count(str(self._file))
                yield Choice(str(self._file), index, prompt, tuple(colours), (1, 2))

    def benchmark(self, is_trained):
        assert not any(is_trained(prompt) for _, (split, prompt, *_) in self._rows() if split == "test")
        rows = [(index, row[1]) for index, row in self._rows() if row[0] == "test"]
        return [BenchmarkPrompt(str(self._file), index, prompt, "flat") for index, prompt in rows]

    @contextmanager
    def images(self, split):
        del split
        yield ColourImages(self._file)


class ColourImages:
    def __init__(self, where):
        self.where = where

    def __contains__(self, name):
        return name in ("red", "green", "blue")

    def read(self, name):
        file = io.BytesIO()
        Image.new("RGB", (64, 32), name).save(file, "PNG")
        return file.getvalue()


def collect(source, target):
    (target / "colours.tsv").write_bytes((source / "colours.tsv").read_bytes())


ENTRY = SourceFormat(
    open=Colours,
    collect=collect,
    check_columns=lambda _: None,
    has_pairs=True,
    has_images=True,
    layout="a directory with colours.tsv",
)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", MappingProxyType({**SOURCES, "colours": ENTRY}))


@pytest.fixture
def settings():
    return load_settings(ROOT / "profiles/tiny.yaml")


@pytest.mark.usefixtures("registered")
def test_a_new_format_is_one_entry_and_is_versioned_checked_and_read(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    rows = [("train", "a red car", "red", "blue"), ("train", "grass", "green", "red")]
    rows += [("test", "the sea", "blue", "green"), ("test", "a rose", "red", "green")]
    (source / "colours.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    data_versions.collect(source, tmp_path / "data/own", "colours")

    ingest = settings.ingest.model_copy(update={"source": "data/own", "format": "colours"})
    require_consistent(settings.model_copy(update={"ingest": ingest}))
    run(**ingest_arguments({"source": "data/own", "format": "colours"}))
    assert sorted(one.text for split in ("train", "validation") for one in read_prompts(split)) == [
        "a red car",
        "grass",
    ]
    assert [(one.text, one.style) for one in read_prompts("test")] == [
        ("the sea", "flat"),
        ("a rose", "flat"),
    ]
    assert [(one.prompt, one.preferred, one.rejected) for one in read_pairs("train")] == [
        ("a red car", "train/red", "train/blue"),
        ("grass", "train/green", "train/red"),
    ]
    assert read_images(["test/blue"])["test/blue"].getpixel((0, 0)) == (0, 0, 255)


def test_an_unknown_format_is_refused_before_a_run_and_by_every_function(settings, findings, tmp_path):
    ingest = settings.ingest.model_copy(update={"format": "hpdv7"})
    for refused in (
        lambda: require_consistent(settings.model_copy(update={"ingest": ingest})),
        lambda: open_source(ingest, findings),
        lambda: data_versions.collect(tmp_path, tmp_path / "target", "hpdv7"),
    ):
        with pytest.raises(ConfigError, match=r"unknown format of ingest.format 'hpdv7': known are .*hpdv2"):
            refused()
