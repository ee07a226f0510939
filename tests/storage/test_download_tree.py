"""A data set in a bucket is copied to a directory: resumed, checked, and without what is no longer there."""

import json
from pathlib import Path

import boto3
import pytest

from srpo_core.errors import StoreError
from srpo_core.storage.s3 import download as s3_download
from srpo_core.storage.s3.download import STATE, download_tree
from srpo_core.workspace import data_versions

pytestmark = pytest.mark.s3

FILES = {"train.json": b"[]", "benchmark/anime.json": b'["a cat"]', "train.tar": bytes(range(256)) * 9000}


@pytest.fixture
def uri(bucket):
    for name, content in FILES.items():
        put(f"s3://{bucket}/sets/hpd", name, content)
    put(f"s3://{bucket}/sets", "hpdv3.json", b"of a neighbour with the same beginning")
    return f"s3://{bucket}/sets/hpd"


def put(uri, name, content):
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=content)


def stored(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != STATE
    }


@pytest.fixture
def reads(monkeypatch):
    """Record (key, first byte) of each object that is read."""
    seen = []
    read = s3_download.read_object

    def recorded(bucket, key, start, size, **errors):
        seen.append((key, start))
        return read(bucket, key, start, size, **errors)

    monkeypatch.setattr(s3_download, "read_object", recorded)
    return seen


def test_all_objects_below_a_prefix_are_copied_and_nothing_else(uri, tmp_path):
    put(uri, "folder/", b"")
    put(uri, "empty.txt", b"")
    assert download_tree(uri, tmp_path / "copy") == 4
    assert stored(tmp_path / "copy") == FILES | {"empty.txt": b""}


def test_one_object_is_copied_alone(uri, tmp_path):
    assert download_tree(f"{uri}/train.json", tmp_path / "copy") == 1
    assert stored(tmp_path / "copy") == {"train.json": b"[]"}


def test_a_second_copy_reads_only_what_changed_and_removes_what_is_gone(uri, tmp_path, reads):
    target = tmp_path / "copy"
    download_tree(uri, target)
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/benchmark/anime.json")
    put(uri, "train.json", b"{}")  # of the same size
    reads.clear()
    download_tree(uri, target)
    assert reads == [("train.json", 0)]
    assert stored(target) == {"train.json": b"{}", "train.tar": FILES["train.tar"]}


def test_an_interrupted_copy_is_continued_where_it_was_cut(uri, tmp_path, reads):
    target = tmp_path / "copy"
    target.mkdir()
    (target / "train.tar.part").write_bytes(FILES["train.tar"][:70_000])
    download_tree(uri, target)
    assert ("train.tar", 70_000) in reads
    assert stored(target) == FILES


def test_a_part_of_other_bytes_is_read_again_from_the_start(uri, tmp_path, reads):
    target = tmp_path / "copy"
    target.mkdir()
    (target / "train.tar.part").write_bytes(b"x" * 70_000)
    download_tree(uri, target)
    assert [start for key, start in reads if key == "train.tar"] == [70_000, 0]
    assert stored(target) == FILES


def test_a_file_that_was_cut_after_the_copy_or_a_damaged_record_of_it_is_read_again(uri, tmp_path):
    target = tmp_path / "copy"
    download_tree(uri, target)
    (target / "train.tar").write_bytes(b"cut")
    download_tree(uri, target)
    (target / STATE).write_text(json.dumps(3))
    download_tree(uri, target)
    assert stored(target) == FILES


def test_an_object_whose_bytes_are_not_those_of_its_etag_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_download, "read_object", lambda *_, **__: iter([b"x" * len(FILES["train.tar"])]))
    with pytest.raises(StoreError, match=r"do not have the MD5 [0-9a-f]{32} of its ETag"):
        download_tree(f"{uri}/train.tar", tmp_path / "copy")
    assert stored(tmp_path / "copy") == {}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda uri: f"{uri}-nothing", r"has no object: check bucket, prefix and AWS_ENDPOINT_URL"),
        (lambda _: "s3://no-such-bucket-of-this-test/x", r"there is no bucket no-such-bucket-of-this-test"),
        (lambda _: "s3://", r"no bucket; write s3://bucket/prefix"),
        (lambda _: "s3://key:secret@host/x", r"a URI must not contain credentials"),
    ],
)
def test_a_wrong_uri_gives_one_line(uri, tmp_path, change, line):
    with pytest.raises(StoreError, match=line) as caught:
        download_tree(change(uri), tmp_path / "copy")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_object_whose_name_leaves_the_directory_is_refused(uri, tmp_path):
    put(uri, "../../up.txt", b"x")
    with pytest.raises(StoreError, match=r"cannot be a file below a directory"):
        download_tree(uri, tmp_path / "copy")
    assert not Path(tmp_path / "up.txt").exists()


def test_a_data_version_is_collected_from_a_bucket_and_the_copy_is_kept_until_it_is_tagged(
    uri, tmp_path, monkeypatch
):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    put(uri, "prompts.txt", b"a cat\na dog\n")
    for source in (f"{uri}/prompts.txt", f"{uri}/"):
        path = Path(data_versions.local_source(source))
        assert path.name == source.rstrip("/").rpartition("/")[2]
        data_versions.collect(path, tmp_path / "target", "prompts")
        assert (tmp_path / "target/prompts.txt").read_bytes() == b"a cat\na dog\n"
        assert path.exists()
        data_versions.forget_copy(source)
        assert not path.exists()
    assert data_versions.local_source("some/directory") == "some/directory"
