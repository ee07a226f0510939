"""Publishers killed at random moments: no version is ever incomplete, and repeating the call completes the work."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from srpo_core.storage import DirectoryStore, open_store

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


# Prints the number of each part that was sent; parts after LAST_PART are never sent.
COUNTING = """
import os, time
from botocore.client import BaseClient
def counting(self, operation, given, honest=BaseClient._make_api_call):
    if operation != "UploadPart":
        return honest(self, operation, given)
    if given["PartNumber"] > int(os.environ["LAST_PART"]):
        time.sleep(600)
    answer = honest(self, operation, given)
    os.write(1, f"part {given['PartNumber']}\\n".encode())
    return answer
BaseClient._make_api_call = counting
"""


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(3):
        (directory / f"weights-{number}").write_bytes(os.urandom(18_000_000))
    (directory / "README.md").write_text("card")
    return directory


def publisher(uri, source, *, script=PUBLISH, **environment):
    process = subprocess.Popen(
        [sys.executable, "-c", script, uri, source],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout.readline() == "begins\n"
    return process


def unfinished_uploads(store):
    """List what an unfinished publication has left in a store: files, objects, uploads."""
    if isinstance(store, DirectoryStore):
        return sorted(str(path) for path in Path(store.uri, ".incoming").rglob("*") if path.is_file())
    client, (name, prefix) = boto3.client("s3"), bucket_and_prefix(store)
    listed = client.list_objects_v2(Bucket=name, Prefix=f"{prefix}/objects/").get("Contents", ())
    uploads = client.list_multipart_uploads(Bucket=name, Prefix=f"{prefix}/objects/").get("Uploads", ())
    return sorted(
        [(entry["Key"], "whole") for entry in listed] + [(entry["Key"], "begun") for entry in uploads]
    )


def remove_version(store):
    """Remove the version and its objects, so that the next publisher must send everything."""
    store.remove(["tiny-1"])
    if isinstance(store, DirectoryStore):
        return
    name, _ = bucket_and_prefix(store)
    for key, _ in unfinished_uploads(store):
        boto3.client("s3").delete_object(Bucket=name, Key=key)


def bucket_and_prefix(store):
    name, _, prefix = store.uri.removeprefix("s3://").partition("/")
    return name, prefix


@pytest.mark.serial  # kill times depend on a measured duration
def test_twenty_kills_leave_no_incomplete_version(any_store, source):
    # measure the duration of one publication, in a separate store
    whole = publisher(f"{any_store.uri}-of-its-own", source)
    seconds = float(whole.communicate()[0])
    draws, inside, published = random.Random(0), 0, 0
    rounds = draws.sample(range(KILLS), KILLS)
    for place in rounds:  # one random kill time in each of KILLS slices of twice that duration
        before = unfinished_uploads(any_store)
        process = publisher(any_store.uri, source)
        time.sleep(2 * seconds * (place + draws.random()) / KILLS)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if any_store.versions():  # a visible version is complete
            assert any_store.versions() == ["tiny-1"]
            assert contents(any_store, "tiny-1") == contents_of(source)
            published += 1
            remove_version(any_store)
        elif unfinished_uploads(any_store) != before:
            inside += 1
    print(f"of {KILLS} publishers {inside} were killed at work, {published} had published")
    assert inside > 0  # the number of completed publications depends on machine load
    publisher(any_store.uri, source).communicate()
    assert any_store.versions() == ["tiny-1"]
    assert contents(any_store, "tiny-1") == contents_of(source)
    assert any_store.publish("tiny-1", {}, any_store.manifest("tiny-1")) is False


@pytest.mark.s3
def test_the_publisher_after_a_killed_one_sends_only_the_missing_parts(bucket, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "weights").write_bytes(os.urandom((8 * 5 << 20) - 1000))  # eight parts
    store = open_store(f"s3://{bucket}/p")
    script = COUNTING + PUBLISH
    process = publisher(store.uri, source, script=script, LAST_PART="5")
    sent = sorted(process.stdout.readline() for _ in range(5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sent == [f"part {number}\n" for number in range(1, 6)]
    assert store.versions() == []
    process = publisher(store.uri, source, script=script, LAST_PART="8")
    lines = process.communicate(timeout=300)[0].splitlines()
    assert sorted(line for line in lines if line.startswith("part")) == ["part 6", "part 7", "part 8"]
    assert store.versions() == ["tiny-1"]
    assert contents(store, "tiny-1") == contents_of(source)


def contents(store, version):
    return {name: b"".join(store.read(version, name)) for name in store.manifest(version)["files"]}


def contents_of(source):
    return {path.name: path.read_bytes() for path in source.iterdir()}


def test_an_alias_survives_kills_of_its_writers(any_store, source):
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
def test_the_memory_of_an_upload_is_that_of_the_parts_in_transfer(bucket, tmp_path):
    """Measure peak memory beyond the imports for a file of 35 parts; at most six of 16 MiB are in memory at once."""
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
    source = tmp_path / "source"
    source.mkdir()
    with (source / "weights").open("wb") as file:
        for _ in range(560):
            file.write(os.urandom(1 << 20))
    command = [sys.executable, "-c", script, f"s3://{bucket}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # How many parts are in memory at the peak depends on timing; a quarter of the file is 140 MB.
    assert float(done.stdout.split()[-1]) < 140
