import gzip
import io
import re
import tarfile

import pytest

from srpo_core.data.images import open_images, require_images
from srpo_core.errors import DataError


def tar_bytes(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def contents(image):
    return {"red.png": image("red"), "sub/blue.png": image("blue", (3, 5))}


@pytest.fixture(params=["directory", "tar", "tar.gz", "tar with folder"])
def source(request, tmp_path, monkeypatch, contents):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    if request.param == "directory":
        for name, content in contents.items():
            path = tmp_path / "train" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path
    folder = "./train/" if request.param == "tar with folder" else ""
    archive = tar_bytes((folder + name, content) for name, content in contents.items())
    if request.param == "tar.gz":
        (tmp_path / "train.tar.gz").write_bytes(gzip.compress(archive))
    else:
        (tmp_path / "train.tar").write_bytes(archive)
    return tmp_path


def test_every_storage_format_gives_the_same_bytes(source, contents):
    with open_images(source, "train") as images:
        # in reverse, since images may be read in another order than that of the archive
        assert {name: images.read(name) for name in reversed(contents)} == contents
        assert "green.png" not in images


def test_unpacking_an_archive_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(tar_bytes([("a", b"1")])))
    with open_images(tmp_path, "train") as images:
        assert images.read("a") == b"1"
    assert list((tmp_path / "home").iterdir()) == []


def test_the_error_for_a_missing_image_names_the_image_and_its_record(source):
    file = str(source / "train.json")
    used = {"red.png": (file, 0), "green.png": (file, 3), "grey.png": (file, 9)}
    with open_images(source, "train") as images:
        expected = f"train.json: record 3: image 'green.png' is not in {images.where} (2 of 3 images are"
        with pytest.raises(DataError, match=re.escape(expected)):
            require_images(images, used)
        require_images(images, {"red.png": (file, 0)})


def test_images_in_no_format_or_in_two_formats_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"one of train/, train\.tar, train\.tar\.gz, found none"):
        open_images(tmp_path, "train").__enter__()
    (tmp_path / "train").mkdir()
    (tmp_path / "train.tar").write_bytes(tar_bytes([]))
    with pytest.raises(DataError, match=r"found .*train and .*train\.tar$"):
        open_images(tmp_path, "train").__enter__()


def test_two_archive_members_with_the_same_name_are_refused(tmp_path):
    (tmp_path / "test.tar").write_bytes(tar_bytes([("a.png", b"1"), ("test/a.png", b"2")]))
    with pytest.raises(DataError, match=r"test\.tar: two members have the name 'a\.png'"):
        open_images(tmp_path, "test").__enter__()


def test_a_truncated_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    whole = tar_bytes([("a.png", bytes(5000))])
    (tmp_path / "test.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"test\.tar: not a readable tar archive: unexpected end of data"):
        open_images(tmp_path, "test").__enter__()
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(whole)[:40])
    with pytest.raises(DataError, match=r"train\.tar\.gz: not a readable gzip archive"):
        open_images(tmp_path, "train").__enter__()
