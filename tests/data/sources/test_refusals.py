"""What is given as a source and is none gets one line that says what it is and what to give."""

from pathlib import Path

import pytest

from srpo_core.data.rules import Findings
from srpo_core.data.sources import open_source
from srpo_core.errors import DataError
from srpo_core.workspace import data_versions

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 116000000\n"


def refusals(tiny, source, format_name="hpdv2"):
    """The line of the stage, and the line of `srpo data`."""
    lines = []
    ingest = tiny.ingest.model_copy(update={"source": str(source), "format": format_name})
    for refused in (
        lambda: open_source(ingest, Findings(ingest, None)),
        lambda: data_versions.collect(source, Path("target"), format_name),
    ):
        with pytest.raises(DataError) as caught:
            refused()
        lines.append(str(caught.value))
        assert "\n" not in lines[-1]
    assert lines[0] == lines[1]
    return lines[0]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "ymhao/HPDv2",
            "run 'hf download ymhao/HPDv2 --repo-type dataset --local-dir HPDv2', then give HPDv2",
        ),
        ("https://huggingface.co/datasets/ymhao/HPDv2", "run 'hf download ymhao/HPDv2 --repo-type dataset"),
        (
            "https://huggingface.co/datasets/ymhao/HPDv2/tree/main",
            "run 'hf download ymhao/HPDv2 --repo-type dataset",
        ),
        ("hf://datasets/ymhao/HPDv2", "run 'hf download ymhao/HPDv2 --repo-type dataset"),
        ("https://example.org/hpd.tar.gz", "is a URL: download it, and give the directory or file"),
        ("gs://bucket/hpd", "is a URL: download it"),
        ("nothing-here", "nothing-here is missing: give a directory with train.json"),
    ],
)
def test_a_source_that_is_elsewhere_is_named_with_how_to_get_it(tiny, tmp_path, monkeypatch, source, line):
    monkeypatch.chdir(tmp_path)
    assert line in refusals(tiny, source)


def test_a_bucket_is_a_source_of_srpo_data_and_not_of_a_run(tiny):
    ingest = tiny.ingest.model_copy(update={"source": "s3://bucket/hpd"})
    with pytest.raises(DataError, match=r"only 'srpo data s3://bucket/hpd' reads"):
        open_source(ingest, Findings(ingest, None))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rewards.pt", "is a file of tensors or weights, and no data set"),
        ("model.safetensors", "is a file of tensors or weights, and no data set"),
        ("HPDv2.tar.gz", "is a packed file (.tar.gz): unpack it"),
        ("hpd.zip", "is a packed file (.zip): unpack it"),
        ("train.json", "is a file, and the format hpdv2 is a directory: give a directory with train.json"),
    ],
)
def test_a_file_of_another_kind_is_named_as_what_it_is(tiny, tmp_path, monkeypatch, name, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"[1]")
    assert line in refusals(tiny, name)


def test_a_directory_around_the_data_set_is_named_with_the_right_one(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "download/HPDv2").mkdir(parents=True)
    (tmp_path / "download/HPDv2/train.json").write_text("[1]")
    assert refusals(tiny, "download").endswith("; download/HPDv2 has one")


def test_a_data_set_that_the_library_datasets_saved_is_named(tiny, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/data-00000-of-00001.arrow").write_bytes(b"x")
    ingest = tiny.ingest.model_copy(update={"source": str(tmp_path), "format": "pairs"})
    with pytest.raises(
        DataError, match=r"data-00000-of-00001.arrow is of the library datasets: write it with to_parquet"
    ):
        open_source(ingest, Findings(ingest, None))


@pytest.mark.parametrize("format_name", ["hpdv2", "pairs"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        (LFS, "train.json is a Git LFS pointer and not the file itself: run 'git lfs pull'"),
        (
            "\n<!DOCTYPE html><html><body>Sign in</body></html>",
            "train.json is an HTML page and not the file itself",
        ),
        ("", "train.json is empty: download it again"),
    ],
)
def test_a_download_that_is_not_the_file_is_found_in_every_format(tiny, tmp_path, content, line, format_name):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.json").write_text(content)
    assert line in refusals(tiny, tmp_path / "own", format_name)
