"""File locks between processes: the second process of each test is a real process."""

import subprocess
import sys
import threading
import time

import pytest

from srpo_core.runtime.file_lock import acquire, is_held, read_holder, try_acquire

HOLD = (
    "import sys; from pathlib import Path; from srpo_core.runtime.file_lock import acquire;"
    "lock = acquire(Path(sys.argv[1]), shared=sys.argv[2] == 'shared');"
    "sys.argv[2] == 'shared' or lock.write_holder(); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds tmp_path/lock, `shared` or `exclusive`, until it is killed."""
    started = []

    def start(kind):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "lock"), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_exclusive_lock_excludes_both_kinds_and_names_its_holder(tmp_path, hold):
    process = hold("exclusive")
    assert try_acquire(tmp_path / "lock") is None
    assert try_acquire(tmp_path / "lock", shared=True) is None
    assert read_holder(tmp_path / "lock") == str(process.pid)


def test_the_lock_of_a_killed_process_is_free(tmp_path, hold):
    process = hold("exclusive")
    process.kill()
    process.wait()
    lock = try_acquire(tmp_path / "lock")
    assert lock is not None
    lock.release()


def test_readers_share_a_lock_and_the_last_one_can_upgrade_it(tmp_path, hold):
    process = hold("shared")
    with acquire(tmp_path / "lock", shared=True) as first:
        assert try_acquire(tmp_path / "lock") is None
        assert not first.try_upgrade()
    process.kill()
    process.wait()
    with acquire(tmp_path / "lock", shared=True) as last:
        assert last.try_upgrade()
        assert try_acquire(tmp_path / "lock", shared=True) is None


def test_acquire_waits_for_the_holder(tmp_path, hold):
    process = hold("exclusive")
    acquired = []
    waiting = threading.Thread(target=lambda: acquired.append(acquire(tmp_path / "lock")), daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert not acquired
    process.kill()
    waiting.join(timeout=30)
    assert acquired
    acquired[0].release()


def test_a_process_that_waited_for_a_removed_lock_file_locks_the_new_one(tmp_path):
    path = tmp_path / "lock"
    last = acquire(path)
    acquired = []
    waiting = threading.Thread(target=lambda: acquired.append(acquire(path, shared=True)), daemon=True)
    waiting.start()
    time.sleep(0.2)
    last.remove_file()
    last.release()
    waiting.join(timeout=30)
    assert path.exists()
    assert try_acquire(path) is None  # the waiting thread has locked the file that is now at `path`
    acquired[0].release()


def test_a_lock_is_released_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="inside"), acquire(tmp_path / "new/lock"):
        raise ValueError("inside")
    lock = try_acquire(tmp_path / "new/lock")
    assert lock is not None
    lock.release()


def test_whether_a_lock_is_held_is_asked_without_making_its_file(tmp_path, hold):
    assert not is_held(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()
    process = hold("shared")
    assert is_held(tmp_path / "lock")
    process.kill()
    process.wait()
    assert not is_held(tmp_path / "lock")
