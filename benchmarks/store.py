"""Measure how the commands on a store grow with its versions: CPU seconds in a directory, requests in a bucket.

    python benchmarks/store.py --versions 10000 --skip "verify --all"   # a directory
    python benchmarks/store.py --versions 252 --bucket --skip "verify --all"   # a bucket of moto in this process

Each line is a JSON object. The versions have few small files and manifests of the usual size, about 20 kB.
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from srpo_core.release.aliases import promote
from srpo_core.release.gc import collect_garbage
from srpo_core.release.summary import list_releases
from srpo_core.release.verify import verify
from srpo_core.storage import MANIFEST, Store, content_digest, open_store, version_key
from srpo_core.storage.manifest import encode_sealed

NUM_FILES = 30
MODEL = "tiny"
RULE = {"name": "a rule", "value": 0.31, "low": 0.25, "high": 0.36, "reason": "it holds " * 20}
FIGURES = {"relative_error": 4e-3, "psnr": 40.0, "gain_kept": 0.97, "files": {"x" * 40: "y" * 64}}
# of every version: a decision of ten rules, and the figures of five formats
DECISION = {"passed": True, "reason": "every rule holds.", "rules": [RULE] * 10}
PROOF = {"formats": {f"format-{one}": FIGURES for one in range(5)}, "refused": {}}


def manifest_of(number: int, data: dict[str, bytes]) -> dict[str, Any]:
    """Return a manifest of the usual size."""
    entries = {
        name: {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)} for name, text in data.items()
    }
    return {
        "version": f"{MODEL}-{number:012x}",
        "created_at": f"2026-01-01T00:00:00+00:00 {number:06}",
        "files": entries,
        "content": content_digest(entries, entries),
        "formats": {"bf16": ["weights-0"]},
        "git": {"revision": "0" * 40, "diff": "+ a changed line\n" * 200, "untracked": []},
        "environment": {"packages": {f"package-{one}": "1.2.3" for one in range(120)}},
        "decision": DECISION,
        "proof": PROOF,
    }


def files_of(number: int) -> dict[str, bytes]:
    """Return the files of a version by name: one of its own, the others shared by all versions."""
    own = {"weights-0": f"weights of {number}".encode()}
    evidence = {
        "decision.json": json.dumps(DECISION).encode(),
        "proof.json": json.dumps(PROOF).encode(),
    }
    return own | evidence | {f"weights-{one}": f"shared {one}".encode() for one in range(1, NUM_FILES)}


def fill_directory(root: Path, versions: int, *, files: bool = True) -> None:
    """Write versions into a directory as the store would, without its synchronisation of each file.

    files: also write the weights, which only `srpo verify` reads.
    """
    for number in range(versions):
        data = files_of(number)
        manifest = manifest_of(number, data)
        directory = root / version_key(manifest["version"])
        directory.mkdir(parents=True)
        for name, text in data.items():
            if files or not name.startswith("weights"):
                (directory / name).write_bytes(text)
        (directory / MANIFEST).write_bytes(encode_sealed(manifest))


def fill_bucket(name: str, versions: int) -> None:
    """Write versions into a bucket as the store would."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    for number in range(versions):
        data = files_of(number)
        manifest = manifest_of(number, data)
        for text in data.values() if number == 0 else [data["weights-0"]]:
            client.put_object(Bucket=name, Key=f"objects/{hashlib.sha256(text).hexdigest()}", Body=text)
        key = f"{version_key(manifest['version'])}/{MANIFEST}"
        client.put_object(Bucket=name, Key=key, Body=encode_sealed(manifest))


def commands(store: Store, versions: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the commands to measure; the last one removes all but one version."""
    last = f"{MODEL}-{versions - 1:012x}"
    yield "releases", lambda: list_releases(store)
    yield "promote", lambda: promote(store, last)
    yield "verify --all", lambda: [verify(store, version) for version in store.versions()]
    yield "gc", lambda: collect_garbage(store, keep=1)
    yield "gc --delete", lambda: collect_garbage(store, keep=1, delete=True)


@contextmanager
def bucket_of_moto() -> Iterator[str]:
    """Run a server of moto in this process and yield the name of a bucket to make."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    dummy = {
        "AWS_ACCESS_KEY_ID": "dummy",
        "AWS_SECRET_ACCESS_KEY": "dummy",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(dummy | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    try:
        yield "releases"
    finally:
        server.stop()


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count the requests to S3 of this process by operation."""
    from botocore.client import BaseClient

    counts, honest = Counter[str](), BaseClient._make_api_call

    def counting(self: Any, operation: str, given: dict[str, Any]) -> Any:
        counts[operation] += 1
        return honest(self, operation, given)

    BaseClient._make_api_call = counting
    try:
        yield counts
    finally:
        BaseClient._make_api_call = honest


def measure(store: Store, versions: int, *, skip: list[str]) -> Iterator[dict[str, Any]]:
    """Run each command and yield a line for it; the requests of a directory are none."""
    for name, command in commands(store, versions):
        if name in skip:
            continue
        wall, cpu = time.monotonic(), time.process_time()
        with counted_requests() as counts:
            command()
        yield {
            "command": name,
            "versions": versions,
            "cpu_seconds": round(time.process_time() - cpu, 3),
            "wall_seconds": round(time.monotonic() - wall, 3),
            "requests": counts.total(),
            "by_operation": dict(counts),
        }


def main(arguments: list[str]) -> None:
    """Fill a store and print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--bucket", action="store_true", help="a bucket of moto instead of a directory")
    parser.add_argument("--skip", action="append", default=[], help="a command not to measure")
    chosen = parser.parse_args(arguments)
    if chosen.bucket:
        with bucket_of_moto() as bucket:
            fill_bucket(bucket, chosen.versions)
            for line in measure(open_store(f"s3://{bucket}"), chosen.versions, skip=chosen.skip):
                print(json.dumps(line), flush=True)
        return
    with TemporaryDirectory() as root:
        fill_directory(Path(root), chosen.versions, files="verify --all" not in chosen.skip)
        for line in measure(open_store(root), chosen.versions, skip=chosen.skip):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
