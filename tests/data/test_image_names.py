import pytest

from srpo_core.data.image_names import is_metadata, plain_name


@pytest.mark.parametrize(
    "name",
    [
        "0001.jpg",
        "./0001.jpg",
        "train/0001.jpg",
        "./train/0001.jpg",
        "train//./0001.jpg",
        "train/train/0001.jpg",
    ],
)
def test_every_spelling_of_a_name_means_the_same_image(name):
    assert plain_name(name, "train") == "0001.jpg"


def test_other_folders_are_part_of_the_name():
    assert plain_name("test/0001.jpg", "train") == "test/0001.jpg"
    assert plain_name("sub/train/0001.jpg", "train") == "sub/train/0001.jpg"
    assert plain_name("trainer/a b.jpg", "train") == "trainer/a b.jpg"


@pytest.mark.parametrize("name", ["/a.jpg", "../a.jpg", "a/../b.jpg", "..", "a\0.jpg"])
def test_a_name_that_leaves_the_directory_is_refused(name):
    with pytest.raises(ValueError, match=r"is not a plain relative path$"):
        plain_name(name, "train")


@pytest.mark.parametrize("name", ["", ".", "train", "train/", "./", "a/"])
def test_a_name_of_no_file_is_refused(name):
    with pytest.raises(ValueError, match=r"names no file$"):
        plain_name(name, "train")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("._a.jpg", True),
        ("train/._a.jpg", True),
        ("__MACOSX/a.jpg", True),
        (".a.jpg", False),
        ("a._b.jpg", False),
    ],
)
def test_metadata_of_macos_is_known_by_its_name(name, expected):
    assert is_metadata(name) is expected
