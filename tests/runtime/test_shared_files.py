import os

import pytest

from srpo_core.artifacts import sha256
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.runtime import shared_files
from srpo_core.runtime.shared_files import Location, local_copy, storage


@pytest.fixture(params=["path", "file", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path):
    """A location of each kind; all behave the same."""
    if request.param == "s3":
        return Location.of(f"s3://{request.getfixturevalue('bucket')}/runs")
    return Location.of(f"file://{tmp_path}/runs" if request.param == "file" else tmp_path / "runs")


def test_files_can_be_written_read_listed_and_deleted(place, tmp_path):
    assert place.names() == []
    (place / "a" / "b.txt").write(b"one")
    place.append("log", "first")
    place.append("log", "second")
    assert (place / "log").read_text() == "first\nsecond\n"
    assert place.names() == ["a", "log"]
    assert place.files() == ["a/b.txt", "log"]
    assert (place / "a/b.txt").sha256().startswith("7692c3ad")
    (place / "a").delete()
    (place / "nothing").delete()
    assert not (place / "a").exists()
    with pytest.raises(FileNotFoundError):
        (place / "a/b.txt").read_text()


def test_an_uploaded_directory_can_be_read_as_a_local_copy(place, tmp_path):
    source = tmp_path / "source/deep"
    source.mkdir(parents=True)
    (source / "x").write_bytes(b"x" * 1000)
    place.upload(tmp_path / "source")
    digests = {"deep/x": (place / "deep/x").sha256()}
    with local_copy(place, digests) as directory:
        assert (directory / "deep/x").read_bytes() == b"x" * 1000
        with local_copy(place, digests) as again:
            assert again == directory
        assert (directory / "deep/x").exists(), "the first reader still uses it"


@pytest.mark.s3
def test_the_last_reader_deletes_the_copy_and_a_changed_or_missing_file_is_named(bucket, tmp_path):
    place = Location.of(f"s3://{bucket}/runs")
    (place / "x").write(b"one")
    with local_copy(place, {"x": (place / "x").sha256()}) as directory:
        pass
    assert not directory.exists()
    with pytest.raises(ArtifactError, match="runs/x does not have its digest"), local_copy(place, {"x": "0"}):
        pass
    with pytest.raises(ArtifactError, match="runs/y is missing"), local_copy(place, {"y": "0"}):
        pass


def test_a_second_reader_verifies_only_files_that_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = Location("memory://test-location/read-once")
    for name in ("x", "deep/y"):
        (place / name).write(b"one")
    digests = {name: (place / name).sha256() for name in ("x", "deep/y")}
    read = []
    monkeypatch.setattr(shared_files, "sha256", lambda path: read.append(path.name) or sha256(path))
    with local_copy(place, digests) as first:
        assert read == ["x", "y"]
        with local_copy(place, digests):
            assert read == ["x", "y"], "verified by the first reader"
        (first / "x").write_bytes(b"two")
        with local_copy(place, digests) as again:
            assert (again / "x").read_bytes() == b"one"
        assert read == ["x", "y", "x", "x"]
    assert [
        path.name for path in (tmp_path / f"srpo-{os.getuid()}").iterdir() if path.suffix == ".verified"
    ] == []


def test_a_copy_with_the_old_time_and_size_but_other_bytes_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = Location("memory://test-location/forged")
    (place / "x").write(b"one")
    digests = {"x": (place / "x").sha256()}
    with local_copy(place, digests) as first:
        before = (first / "x").stat()
        (first / "x").write_bytes(b"bad")
        os.utime(first / "x", ns=(before.st_atime_ns, before.st_mtime_ns))
        with local_copy(place, digests) as again:
            assert (again / "x").read_bytes() == b"one"


def test_a_directory_of_copies_that_others_can_enter_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = Location("memory://test-location/open")
    (place / "x").write(b"one")
    (tmp_path / f"srpo-{os.getuid()}").mkdir()
    (tmp_path / f"srpo-{os.getuid()}").chmod(0o777)
    with (
        pytest.raises(ConfigError, match="cannot be trusted"),
        local_copy(place, {"x": (place / "x").sha256()}),
    ):
        pass


def test_the_copy_is_deleted_if_its_reader_or_its_download_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = Location("memory://test-location/runs")
    (place / "x").write(b"one")
    good = {"x": (place / "x").sha256()}
    with pytest.raises(RuntimeError), local_copy(place, good) as directory:
        assert (directory / "x").read_bytes() == b"one"
        raise RuntimeError
    assert not directory.exists()
    with pytest.raises(ArtifactError, match="runs/y is missing"), local_copy(place, {**good, "y": "0"}):
        pass
    assert not directory.exists()


def test_an_unknown_kind_of_storage_is_refused(monkeypatch):
    monkeypatch.setenv("SRPO_SHARED", "gopher://hole")
    with pytest.raises(ConfigError, match="unknown storage 'gopher': use a path"):
        storage()


def test_without_srpo_shared_there_is_no_shared_location(monkeypatch):
    monkeypatch.delenv("SRPO_SHARED", raising=False)
    assert storage() is None
