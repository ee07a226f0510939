"""A publisher that is killed at random moments: no version is ever seen half, and the same call ends the work."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.pipeline
KILLS = 20

PUBLISH = """
import hashlib, pathlib, sys, time
from srpo_core.storage import S3Store, open_store
uri, source = sys.argv[1:]
files = {path.name: path for path in sorted(pathlib.Path(source).iterdir())}
entries = {n: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "bytes": p.stat().st_size} for n, p in files.items()}
store = S3Store(uri, part_bytes=5 << 20) if uri.startswith("s3://") else open_store(uri)
print("begins", flush=True)
begun = time.monotonic()
store.publish("tiny-1", files, {"files": entries, "content": "c"})
print(time.monotonic() - begun, flush=True)
"""


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(3):
        (directory / f"weights-{number}").write_bytes(os.urandom(18_000_000))
    (directory / "README.md").write_text("card")
    return directory


def publisher(uri, source):
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISH, uri, source], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    return process


def test_twenty_kills_leave_no_half_version(any_store, source):
    # how long one takes here, on a store of its own
    whole = publisher(f"{any_store.uri}-of-its-own", source)
    seconds = float(whole.communicate()[0])
    draws, seen = random.Random(0), 0
    for _ in range(KILLS):
        process = publisher(any_store.uri, source)
        time.sleep(draws.uniform(0, seconds * 1.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for version in any_store.versions():  # whoever sees it sees all of it
            seen += 1
            assert contents(any_store, version) == contents_of(source)
        if seen:
            any_store.remove("tiny-1")
    publisher(any_store.uri, source).communicate()
    assert any_store.versions() == ["tiny-1"]
    assert contents(any_store, "tiny-1") == contents_of(source)
    assert any_store.publish("tiny-1", {}, any_store.manifest("tiny-1")) is False


def contents(store, version):
    return {name: b"".join(store.read(version, name)) for name in store.manifest(version)["files"]}


def contents_of(source):
    return {path.name: path.read_bytes() for path in source.iterdir()}


def test_an_alias_survives_kills_of_those_who_move_it(any_store, source):
    publisher(any_store.uri, source).communicate()
    script = (
        "import sys; from srpo_core.storage import open_store; store = open_store(sys.argv[1])\n"
        "for number in range(10**6):\n"
        "    value, token = store.alias('tiny/production')\n"
        "    history = (value or {'history': []})['history'][-50:] + [number]\n"
        "    assert store.write_alias('tiny/production', {'version': 'tiny-1', 'history': history}, token)\n"
        "    print(number, flush=True)\n"
    )
    draws = random.Random(1)
    for _ in range(KILLS // 2):
        process = subprocess.Popen(
            [sys.executable, "-c", script, any_store.uri], stdout=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        time.sleep(draws.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        last = int((first + process.communicate()[0]).split()[-1])
        value, _ = any_store.alias("tiny/production")
        assert value["version"] == "tiny-1"
        assert value["history"][-1] in (last, last + 1)


@pytest.mark.s3
def test_an_upload_needs_little_memory_whatever_its_size(bucket, tmp_path):
    """Peak of memory over that of the imports, for 160 MB and for 560 MB: both have more parts than go at once."""
    script = PUBLISH.replace("S3Store(uri, part_bytes=5 << 20)", "S3Store(uri)").replace(
        "store.publish(",
        "import boto3, re; store.versions(); peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\nstore.publish(",
    )
    script = script.replace(
        "hashlib.sha256(p.read_bytes()).hexdigest()",
        "hashlib.file_digest(p.open('rb'), 'sha256').hexdigest()",
    )
    script += "print((peak() - before) / 1024, flush=True)\n"
    used = []
    for megabytes in (160, 560):
        source = tmp_path / f"source-{megabytes}"
        source.mkdir()
        with (source / "weights").open("wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
        command = [sys.executable, "-c", script, f"s3://{bucket}/{megabytes}", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used.append(float(done.stdout.split()[-1]))
    print(f"MB above the imports: {used}")
    assert max(used) < 150
    assert used[1] < used[0] + 40
