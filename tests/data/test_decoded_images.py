import hashlib
import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from srpo_core.data import decoded_images
from srpo_core.data.decoded_images import decode_images
from srpo_core.data.decoding import read_image
from srpo_core.errors import DataError


class Stored:
    """Images in memory, which note what is read."""

    where = Path("train.tar")

    def __init__(self, contents, before=lambda: None):
        self.contents, self.before, self.read_names = contents, before, []

    def __contains__(self, name):
        return name in self.contents

    def read(self, name):
        self.before()
        self.read_names.append(name)
        return self.contents[name]


def jpeg(width, height):
    file = io.BytesIO()
    Image.effect_noise((width, height), 60).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def contents():
    """200 images of different sizes, every tenth damaged."""
    made = {f"{number:03d}.jpg": jpeg(1 + number, 300 - number) for number in range(200)}
    return {name: made[name][:-90] if name.endswith("5.jpg") else made[name] for name in made}


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_images_are_decoded_in_order_whatever_the_number_of_workers(contents, workers):
    found = list(decode_images(Stored(contents), contents, workers=workers))
    assert [image.name for image in found] == list(contents)
    for number, image in enumerate(found):
        assert image.digest == hashlib.sha256(contents[image.name]).digest()[:16]
        if number % 10 == 5:
            assert image.size is None
            assert "truncated" in image.problem
        else:
            assert (image.size, image.problem) == ((1 + number, 300 - number), "")


def test_several_images_are_decoded_at_once(contents, monkeypatch):
    together = threading.Barrier(3)
    threads = set()

    def wait_for_two_others(content):
        if (own := threading.get_ident()) not in threads:
            threads.add(own)
            together.wait(timeout=30)  # fails if fewer threads decode
        return read_image(content)

    monkeypatch.setattr(decoded_images, "read_image", wait_for_two_others)
    found = list(decode_images(Stored(contents), contents, workers=3))
    assert (len(found), len(threads)) == (200, 3)


def test_files_are_read_in_order_by_one_thread(contents):
    threads = set()
    stored = Stored(contents, lambda: threads.add(threading.get_ident()))
    list(decode_images(stored, contents, workers=3))
    assert threads == {threading.get_ident()}
    assert stored.read_names == list(contents)


def test_images_that_nobody_asks_for_are_not_read(contents):
    stored = Stored(contents)
    found = decode_images(stored, contents, workers=2)
    for _ in range(3):
        next(found)
    # the first tasks of each worker, and no more
    assert len(stored.read_names) <= 2 * 2 * 8 + 8
    found.close()
    assert len(stored.read_names) < 60


def test_an_image_that_cannot_be_read_ends_the_decoding(contents):
    def fail():
        raise DataError("train: image '007.jpg' cannot be read: Permission denied")

    stored = Stored(contents, fail)
    with pytest.raises(DataError, match="Permission denied"):
        list(decode_images(stored, contents, workers=2))
    assert stored.read_names == []


def test_no_images_are_decoded_to_nothing():
    assert list(decode_images(Stored({}), [], workers=2)) == []
