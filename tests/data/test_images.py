import gzip
import io
import tarfile

import pytest

from srpo_core.data import images as module
from srpo_core.data.images import open_images
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


def test_an_archive_that_is_cut_between_two_members_is_refused_unless_gzip_proves_that_it_is_whole(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    whole = tar_bytes([("a.png", bytes(5000)), ("b.png", b"x" * 512), ("c.png", b"c")])
    first, second = 512 + 5120, 512 + 5120 + 1024
    for cut in (first, second):
        (tmp_path / "train.tar").write_bytes(whole[:cut])
        refused(
            tmp_path,
            rf"train\.tar: not a readable tar archive: the file ends at byte {cut} .* truncate -s \+1024 train\.tar$",
        )
    with (tmp_path / "train.tar").open("ab") as file:
        file.truncate(second + 1024)  # what the message says
    with open_images(tmp_path, "train") as images:
        assert images.names() == ["a.png", "b.png"]
    (tmp_path / "train.tar").unlink()
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(whole[:first]))  # by a writer that adds no end
    with open_images(tmp_path, "train") as images:
        assert images.names() == ["a.png"]


def test_a_second_archive_behind_the_first_is_not_dropped_silently(tmp_path):
    both = tar_bytes([("a.png", b"1")]) + tar_bytes([("b.png", b"2")])
    (tmp_path / "train.tar").write_bytes(both)
    refused(
        tmp_path,
        r"train\.tar: .*more data behind the end of the archive at byte 1024: pack all members in one",
    )


def write_tar(path, *members, **options):
    """Write a tar; a member is a name with its bytes, or a TarInfo of a link."""
    with tarfile.open(path, "w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                archive.addfile(header, io.BytesIO(member[1]))


def link(name, target, kind=tarfile.LNKTYPE):
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, target
    return header


def refused(source, message):
    with pytest.raises(DataError, match=message) as caught:
        open_images(source, "train").__enter__()
    assert "\n" not in str(caught.value)


def test_files_in_which_macos_keeps_metadata_are_no_images(tmp_path):
    names = ["._train", "train/._a.png", "__MACOSX/train/._a.png", "train/a.png", "a.png/._b"]
    write_tar(tmp_path / "train.tar", *((name, name.encode()) for name in names))
    with open_images(tmp_path, "train") as images:
        assert images.read("a.png") == b"train/a.png"
        assert not any(name in images for name in ("._a.png", "._train", "__MACOSX/train/._a.png"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test/._a.png").write_bytes(b"fork")
    (tmp_path / "test/a.png").write_bytes(b"image")
    with open_images(tmp_path, "test") as images:
        assert ("a.png" in images, "._a.png" in images) == (True, False)


def test_links_within_an_archive_are_the_files_that_they_point_to(tmp_path):
    write_tar(
        tmp_path / "train.tar",
        link("train/first.png", "a.png", tarfile.SYMTYPE),
        ("train/a.png", b"image"),
        link("train/hard.png", "train/a.png"),
        link("train/sub/soft.png", "../hard.png", tarfile.SYMTYPE),
    )
    with open_images(tmp_path, "train") as images:
        for name in ("a.png", "first.png", "hard.png", "sub/soft.png"):
            assert images.read(name) == b"image"


def test_hard_links_that_tar_writes_for_a_file_with_two_names_are_read(tmp_path):
    folder = tmp_path / "files" / "train"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"image")
    (folder / "b.png").hardlink_to(folder / "a.png")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        archive.add(folder, "train")
    with open_images(tmp_path, "train") as images:
        assert images.read("a.png") == images.read("b.png") == b"image"


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_link_to_no_file_of_the_archive_is_refused(tmp_path, kind):
    write_tar(tmp_path / "train.tar", ("a.png", b"image"), link("b.png", "c.png", kind))
    refused(tmp_path, r"train\.tar: member 'b\.png' is a link to 'c\.png', which is no file of the archive")
    write_tar(tmp_path / "train.tar", link("a.png", "b.png", kind), link("b.png", "a.png", kind))
    refused(tmp_path, r"is a link to '[ab]\.png', which is no file of the archive")


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "train/../../a.png"])
def test_members_and_links_outside_of_the_archive_are_refused(tmp_path, name):
    write_tar(tmp_path / "train.tar", (name, b"image"))
    refused(
        tmp_path, r"train\.tar: the member or link '.*' is not a plain relative path: pack the images by rel"
    )
    write_tar(tmp_path / "train.tar", link("a.png", name, tarfile.SYMTYPE))
    refused(tmp_path, r"is not a plain relative path: pack the images by relative names")


def test_a_sparse_member_is_refused(tmp_path):
    # the data begin with a map of the file's parts, which would be read as the image
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png"}
    header = tarfile.TarInfo("GNUSparseFile.0/a.png")
    header.pax_headers = headers | {"GNU.sparse.realsize": "4096"}
    data = b"1\n4092\n4\n".ljust(512, b"\0") + b"tail"
    header.size = len(data)
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header, io.BytesIO(data))
    refused(tmp_path, r"train\.tar: member 'a\.png' is a sparse file: pack the images without --sparse")


def test_directories_and_devices_of_an_archive_are_no_images(tmp_path):
    write_tar(
        tmp_path / "train.tar",
        link("train", "", tarfile.DIRTYPE),
        link("train/sub", "", tarfile.DIRTYPE),
        link("train/pipe", "", tarfile.FIFOTYPE),
        ("train/sub/a.png", b"1"),
    )
    with open_images(tmp_path, "train") as images:
        assert [name in images for name in ("sub", "pipe", "sub/a.png")] == [False, False, True]


def test_an_archive_that_was_unpacked_in_its_directory_is_read(tmp_path):
    (tmp_path / "train/train").mkdir(parents=True)
    (tmp_path / "train/train/a.png").write_bytes(b"image")
    with open_images(tmp_path, "train") as images:
        assert images.read("a.png") == b"image"
        (tmp_path / "train/a.png").write_bytes(b"another")
        with pytest.raises(DataError, match=r"are both image 'a\.png': remove one of them"):
            images.read("a.png")


def test_a_name_that_the_file_system_cannot_hold_is_reported_in_one_line(tmp_path):
    (tmp_path / "train").mkdir()
    with open_images(tmp_path, "train") as images, pytest.raises(DataError, match="cannot be looked up"):
        assert "a" * 5000 in images


def test_an_archive_of_zeros_does_not_fill_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "ALWAYS_UNPACKED", 1 << 20)
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(tar_bytes([("a.png", bytes(30 << 20))])))
    refused(
        tmp_path, r"train\.tar\.gz: unpacked, it has more than 100 times its size: it is no archive of images"
    )


def test_an_archive_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, block):
            raise OSError(28, "No space left on device", len(block))

    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda **_: Full())
    (tmp_path / "train.tar.gz").write_bytes(gzip.compress(tar_bytes([("a.png", b"1")])))
    refused(
        tmp_path, r"cannot be unpacked into .*home \(No space left on device\) after 0\.0 GB: free some space"
    )


def test_a_member_of_a_terabyte_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    write_tar(tmp_path / "train.tar", ("a.png", bytes(101)))
    (tmp_path / "test").mkdir()
    (tmp_path / "test/a.png").write_bytes(bytes(101))
    for split in ("train", "test"):
        expected = pytest.raises(DataError, match=r"image 'a\.png' has 101 bytes: at most 100 are read")
        with open_images(tmp_path, split) as images, expected:
            images.read("a.png")
