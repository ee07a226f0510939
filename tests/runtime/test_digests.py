"""Digests of large files; /proc counts the bytes that this process reads."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from srpo_core.runtime import digests
from srpo_core.runtime.digests import known_digest, read_digest

SIZE = 4 << 20


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A large file, which counts as old although it has just been written."""
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(digests, "SETTLED_NS", 0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(os.urandom(SIZE))
    time.sleep(0.02)  # the next change gets another time
    return path


def correct(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bytes_read(function, path):
    def count():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    function(path)
    return count() - before


def test_a_file_is_read_once_and_then_known_also_by_a_link_to_it(weights, tmp_path):
    assert bytes_read(known_digest, weights) > SIZE
    assert bytes_read(known_digest, weights) < SIZE / 100
    (tmp_path / "workspace").symlink_to(tmp_path)
    assert bytes_read(known_digest, tmp_path / "workspace" / weights.name) < SIZE / 100
    assert known_digest(weights) == correct(weights)


def test_a_check_always_reads_the_bytes_and_what_it_read_is_then_known(weights):
    assert bytes_read(read_digest, weights) > SIZE
    assert bytes_read(read_digest, weights) > SIZE
    assert bytes_read(known_digest, weights) < SIZE / 100


def test_other_bytes_with_the_old_size_and_modification_time_are_noticed(weights):
    before, found = known_digest(weights), weights.stat()
    with weights.open("r+b") as file:
        file.write(b"other bytes")
    os.utime(weights, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert weights.stat().st_size == found.st_size
    assert known_digest(weights) == correct(weights) != before


def test_a_replaced_file_is_noticed(weights):
    before = known_digest(weights)
    other = weights.with_name("other")
    other.write_bytes(os.urandom(SIZE))
    other.replace(weights)
    assert known_digest(weights) == correct(weights) != before


def test_the_digest_of_a_file_that_has_just_changed_is_not_recorded(weights, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_NS", 2_000_000_000)
    known_digest(weights)
    assert bytes_read(known_digest, weights) > SIZE


def test_the_digest_of_a_file_that_changes_while_it_is_read_is_not_recorded(weights, monkeypatch):
    honest = digests.sha256

    def changed_meanwhile(path):
        found = honest(path)
        path.write_bytes(os.urandom(SIZE))
        return found

    monkeypatch.setattr(digests, "sha256", changed_meanwhile)
    known_digest(weights)
    monkeypatch.undo()
    assert known_digest(weights) == correct(weights)


def test_a_damaged_record_is_replaced_and_those_of_removed_files_are_deleted(weights, tmp_path):
    known_digest(weights)
    (record,) = (tmp_path / "home/digests").iterdir()
    for damage in ("", "[]", '{"sha256": 1}'):
        record.write_text(damage)
        assert known_digest(weights) == correct(weights)
    other = weights.rename(tmp_path / "renamed")
    known_digest(other)
    assert len(list((tmp_path / "home/digests").iterdir())) == 1


def test_processes_that_record_the_same_file_at_once_all_get_its_digest(weights, tmp_path):
    expected = correct(weights)

    def forget_and_compute(_):
        for record in (tmp_path / "home/digests").glob("*.json"):
            record.unlink(missing_ok=True)
        return known_digest(weights)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(forget_and_compute, range(24))) == {expected}
