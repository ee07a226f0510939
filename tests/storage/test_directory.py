"""The directory store under faults: killed publishers, full disks, read-only mounts, races."""

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from srpo_core.errors import StoreError
from srpo_core.storage import open_store

MEGABYTE = 1 << 20


def everything(root):
    return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file())


def published(store, version):
    return {name: b"".join(store.read(version, name)) for name in store.manifest(version)["files"]}


@pytest.fixture
def tmpfs(tmp_path):
    """A small file system, and a function that remounts it with other options."""
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a file system is not permitted here")

    def remount(options):
        subprocess.run(["mount", "-o", f"remount,{options}", str(mount)], check=True)

    yield mount, remount
    subprocess.run(["umount", "--lazy", str(mount)], check=True)


SLOW_PUBLISHER = """
import json, os, sys, time
from pathlib import Path
from srpo_core.storage import directory, open_store

honest = directory.copy_file

def slow_copy(source, target, digest, name, *more):
    honest(source, target, digest, name, *more)
    Path(sys.argv[3]).write_text(name)
    time.sleep(600)

directory.copy_file = slow_copy
plan = json.loads(Path(sys.argv[2]).read_text())
files = {name: Path(path) for name, path in plan["files"].items()}
open_store(sys.argv[1]).publish("tiny-1", files, plan["manifest"])
"""


def start_slow_publisher(store, release, tmp_path):
    """Start a publisher that stops after its first file; return once that is copied."""
    files, manifest = release
    plan, reached = tmp_path / "plan.json", tmp_path / "reached"
    plan.write_text(json.dumps({"files": {n: str(p) for n, p in files.items()}, "manifest": manifest}))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PUBLISHER, store.uri, str(plan), str(reached)],
        cwd=Path(__file__).resolve().parents[2],
    )
    until = time.monotonic() + 30
    while not reached.exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


def test_a_killed_publisher_leaves_nothing_visible_and_the_next_one_succeeds(tmp_path, make_release):
    store = open_store(str(tmp_path / "store"))
    release = make_release()
    process = start_slow_publisher(store, release, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert store.versions() == []
    assert any(name.startswith(".incoming/") for name in everything(store.uri))
    assert store.publish("tiny-1", *release) is True
    assert not any(name.startswith(".incoming/") for name in everything(store.uri))
    assert published(store, "tiny-1") == {name: path.read_bytes() for name, path in release[0].items()}


def test_a_publisher_does_not_remove_the_files_of_an_active_one(tmp_path, make_release):
    store = open_store(str(tmp_path / "store"))
    process = start_slow_publisher(store, make_release(tag="slow"), tmp_path)
    try:
        before = [name for name in everything(store.uri) if name.startswith(".incoming/")]
        assert store.publish("tiny-2", *make_release(tag="quick")) is True
        after = [name for name in everything(store.uri) if name.startswith(".incoming/")]
        assert before
        assert before == after
    finally:
        process.kill()
        process.wait()


def _publish_in_a_process(uri, files, manifest, start, outcomes):
    start.wait()
    outcomes.put(open_store(uri).publish("tiny-1", files, manifest))


def test_one_of_two_concurrent_processes_publishes(tmp_path, make_release):
    context = multiprocessing.get_context("fork")
    start, outcomes = context.Event(), context.Queue()
    arguments = (str(tmp_path / "store"), *make_release(4 * MEGABYTE), start, outcomes)
    processes = [context.Process(target=_publish_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    results = [outcomes.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(results) == [False, True]
    assert open_store(str(tmp_path / "store")).versions() == ["tiny-1"]


def test_a_full_store_gives_a_one_line_error_and_loses_nothing(tmpfs, make_release):
    mount, remount = tmpfs
    store = open_store(str(mount / "store"))
    store.publish("tiny-small", *make_release(MEGABYTE, "small"))
    before = everything(mount)
    large = make_release(6 * MEGABYTE, "large")
    with pytest.raises(StoreError, match=r"is full and cannot store tiny-large \(6\.3 MB\)") as caught:
        store.publish("tiny-large", *large)
    assert "\n" not in str(caught.value)
    assert everything(mount) == before
    assert store.versions() == ["tiny-small"]
    assert len(published(store, "tiny-small")["transformer/weights"]) == MEGABYTE
    remount("size=16m")
    assert store.publish("tiny-large", *large) is True


def test_a_full_store_does_not_move_the_alias(tmpfs):
    mount, _ = tmpfs
    store = open_store(str(mount / "store"))
    store.write_alias("tiny/candidate", {"version": "a"}, None)
    _, token = store.alias("tiny/candidate")
    with pytest.raises(OSError, match="No space left"):
        (mount / "filler").write_bytes(bytes(8 * MEGABYTE))
    with pytest.raises(
        StoreError, match="is full and cannot move the alias tiny/candidate; it was not moved"
    ):
        store.write_alias("tiny/candidate", {"version": "b", "history": ["x" * 10_000]}, token)
    assert store.alias("tiny/candidate")[0] == {"version": "a"}


def test_a_read_only_store_can_be_read_but_not_written(tmpfs, make_release):
    mount, remount = tmpfs
    store = open_store(str(mount / "store"))
    release = make_release()
    store.publish("tiny-1", *release)
    store.write_alias("tiny/candidate", {"version": "tiny-1"}, None)
    remount("ro")
    with pytest.raises(StoreError, match="is read-only and cannot store tiny-2"):
        store.publish("tiny-2", *release)
    with pytest.raises(StoreError, match="is read-only and cannot move the alias"):
        store.write_alias("tiny/candidate", {"version": "x"}, store.alias("tiny/candidate")[1])
    with pytest.raises(StoreError, match="is read-only and cannot remove tiny-1"):
        store.remove(["tiny-1"])
    assert store.publish("tiny-1", *release) is False
    assert store.versions() == ["tiny-1"]
    assert store.alias("tiny/candidate")[0] == {"version": "tiny-1"}
    assert published(store, "tiny-1")["README.md"] == b"card a"


def test_a_store_that_cannot_be_created_gives_an_error(tmpfs, make_release):
    mount, remount = tmpfs
    remount("ro")
    store = open_store(str(mount / "new/store"))
    assert store.versions() == []
    with pytest.raises(StoreError, match="is read-only"):
        store.publish("tiny-1", *make_release())


def _publish_with_a_file_size_limit(uri, files, manifest, outcomes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        outcomes.put(open_store(uri).publish("tiny-1", files, manifest))
    except StoreError as error:
        outcomes.put(str(error))


def test_an_interrupted_write_leaves_nothing_visible(tmp_path, make_release):
    """Needs no mount: a limit on the file size interrupts a write, as a full disk does."""
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    uri = str(tmp_path / "store")
    process = context.Process(
        target=_publish_with_a_file_size_limit, args=(uri, *make_release(100_000), outcomes)
    )
    process.start()
    message = outcomes.get(timeout=60)
    process.join()
    assert "is full and cannot store tiny-1 (0.1 MB); nothing was published" in message
    assert everything(uri) == [".incoming.lock"]


def test_a_store_path_that_is_a_file_gives_an_error(tmp_path, make_release):
    (tmp_path / "store").write_text("not a directory")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        open_store(str(tmp_path / "store")).publish("tiny-1", *make_release())


def test_a_lost_file_of_a_version_is_named(tmp_path, make_release):
    store = open_store(str(tmp_path / "store"))
    store.publish("tiny-1", *make_release())
    (store.local("tiny-1") / "README.md").unlink()
    with pytest.raises(StoreError, match=r"has lost README\.md of tiny-1"):
        list(store.read("tiny-1", "README.md"))


def test_a_writer_of_an_alias_waits_for_the_lock(tmp_path):
    """This process holds the lock, so the writer in the other one must wait."""
    store = open_store(str(tmp_path / "store"))
    store.write_alias("tiny/candidate", {"version": "a"}, None)
    script = (
        "import sys; from srpo_core.storage import open_store; s = open_store(sys.argv[1]);"
        "t = s.alias('tiny/candidate')[1]; print('ready', flush=True);"
        "print(s.write_alias('tiny/candidate', {'version': 'b'}, t))"
    )
    with (tmp_path / "store/.aliases.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-c", script, store.uri],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        assert process.poll() is None
        assert store.alias("tiny/candidate")[0] == {"version": "a"}
    assert process.communicate(timeout=30)[0] == "True\n"
    assert store.alias("tiny/candidate")[0] == {"version": "b"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EDQUOT, errno.EIO])
def test_an_error_while_syncing_has_one_line_and_leaves_no_version(tmp_path, make_release, monkeypatch, code):
    def failing(descriptor):
        raise OSError(code, os.strerror(code))

    store = open_store(str(tmp_path / "store"))
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match="cannot store tiny-1") as caught:
        store.publish("tiny-1", *make_release())
    assert "\n" not in str(caught.value)
    assert store.versions() == []
    assert everything(store.uri) == [".incoming.lock"]
