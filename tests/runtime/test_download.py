import hashlib

import pytest

from srpo_core.runtime.download import download

CONTENT = b"".join(b"%05d" % number for number in range(2000))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Source:
    """A source that records the offsets of reads and fails after `limit` bytes."""

    def __init__(self, content=CONTENT, limit=None):
        self.content, self.limit, self.offsets = content, limit, []

    def __call__(self, start):
        self.offsets.append(start)
        for place in range(start, len(self.content), 1000):
            if self.limit is not None and place - start >= self.limit:
                raise ConnectionError("cut off")
            yield self.content[place : place + 1000]


@pytest.fixture
def target(tmp_path):
    return tmp_path / "deep/file"


def test_a_download_writes_the_file_and_leaves_no_partial_file(target):
    source = Source()
    assert download(source, target, DIGEST) is True
    assert source.offsets == [0]
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_a_complete_file_is_not_read_again(target):
    download(Source(), target, DIGEST)
    source = Source()
    assert download(source, target, DIGEST) is True
    assert source.offsets == []


def test_an_interrupted_download_leaves_a_partial_file_and_only_the_rest_is_read(target):
    with pytest.raises(ConnectionError):
        download(Source(limit=3000), target, DIGEST)
    assert not target.exists()
    assert (target.parent / "file.part").read_bytes() == CONTENT[:3000]
    source = Source()
    assert download(source, target, DIGEST) is True
    assert source.offsets == [3000]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"another file", CONTENT + b"more", CONTENT[:-1] + b"?"])
def test_a_partial_file_that_is_not_the_beginning_of_the_file_is_replaced(target, part):
    target.parent.mkdir()
    (target.parent / "file.part").write_bytes(part)
    source = Source()
    assert download(source, target, DIGEST) is True
    assert source.offsets == [len(part), 0]
    assert target.read_bytes() == CONTENT


def test_an_altered_target_is_replaced_only_by_a_verified_download(target):
    target.parent.mkdir()
    target.write_bytes(b"altered")
    assert download(Source(b"wrong"), target, DIGEST) is False
    assert target.read_bytes() == b"altered"
    assert download(Source(), target, DIGEST) is True
    assert target.read_bytes() == CONTENT


def test_bytes_with_another_digest_are_refused_and_leave_nothing(target):
    assert download(Source(CONTENT[:-1]), target, DIGEST) is False
    assert list(target.parent.iterdir()) == []


def test_an_empty_file_can_be_downloaded(target):
    assert download(Source(b""), target, hashlib.sha256(b"").hexdigest()) is True
    assert target.read_bytes() == b""
