"""Copy the objects below a prefix to a directory: several at once, resumed after an interruption, and checked."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from srpo_core.artifacts import replacing
from srpo_core.credentials import mask_credentials
from srpo_core.errors import StoreError
from srpo_core.runtime import file_lock
from srpo_core.runtime.download import BLOCK, PART_SUFFIX
from srpo_core.runtime.progress import with_progress
from srpo_core.storage.s3.bucket import Bucket
from srpo_core.storage.s3.reading import read_object

OBJECTS_AT_ONCE: Final = 8
# name, size and ETag of the objects that were copied and checked, beside the files
STATE: Final = ".srpo-objects.json"
_MD5: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class _Object:
    """An object as it is listed. name: its path below the prefix."""

    name: str
    key: str
    size: int
    etag: str


def download_tree(uri: str, target: Path) -> int:
    """Copy the object `uri`, or all objects below it, to a directory, and remove other files there; return their number.

    Objects that an earlier call copied and that did not change are not read again. An interrupted call leaves
    `<file>.part`, and the next one reads only the rest. Sizes are checked, and the MD5 of objects whose ETag is one.

    Raises:
        StoreError: nothing is there, the store cannot be read, or an object changes while it is read.
    """
    bucket, objects = _list(uri)
    target.mkdir(parents=True, exist_ok=True)
    with file_lock.acquire(target.with_name(f"{target.name}.lock")):
        known = _known(target)
        missing = [one for one in objects if not _is_there(target, one, known)]
        _remove_others(target, {one.name for one in objects})
        _copy_all(
            bucket, missing, target, {one.name: known[one.name] for one in objects if one not in missing}
        )
    return len(objects)


def list_sizes(uri: str) -> dict[str, int]:
    """Return the bytes of the objects that `download_tree` would copy, by name. Raises its errors."""
    return {one.name: one.size for one in _list(uri)[1]}


def _list(uri: str) -> tuple[Bucket, list[_Object]]:
    if "@" in uri:
        raise StoreError(
            f"{mask_credentials(uri)}: a URI must not contain credentials: write s3://bucket/prefix, and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    bucket = Bucket(uri)
    with bucket.errors():
        found = [
            _Object(
                entry["Key"].removeprefix(bucket.prefix),
                entry["Key"].removeprefix(bucket.prefix),
                entry["Size"],
                _etag(entry),
            )
            for entry in bucket.entries("list_objects_v2", "Contents", "")
            if not entry["Key"].endswith("/")
        ]
        if not found and "/" in uri.removeprefix("s3://").rstrip("/"):
            parent, _, name = uri.rstrip("/").rpartition("/")
            bucket = Bucket(parent)
            head = bucket.head(name)
            found = [] if head is None else [_Object(name, name, head["ContentLength"], _etag(head))]
    if not found:
        raise StoreError(f"{uri}: has no object: check bucket, prefix and AWS_ENDPOINT_URL")
    for one in found:
        path = PurePosixPath(one.name)
        if path.is_absolute() or ".." in path.parts or str(path) != one.name:
            raise StoreError(f"{uri}: the object {one.name!r} cannot be a file below a directory: rename it")
    return bucket, found


def _etag(entry: Mapping[str, Any]) -> str:
    return str(entry.get("ETag", "")).strip('"')


def _known(target: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads((target / STATE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not written yet, or cut off by a full disk: read all again
        return {}
    return known if isinstance(known, dict) else {}


def _is_there(target: Path, one: _Object, known: Mapping[str, list[Any]]) -> bool:
    file = target / one.name
    return known.get(one.name) == [one.size, one.etag] and file.is_file() and file.stat().st_size == one.size


def _remove_others(target: Path, names: set[str]) -> None:
    kept = names | {f"{name}{PART_SUFFIX}" for name in names} | {STATE}
    for path in target.rglob("*"):
        if path.is_file() and path.relative_to(target).as_posix() not in kept:
            path.unlink()


def _copy_all(bucket: Bucket, objects: list[_Object], target: Path, known: dict[str, list[Any]]) -> None:
    with bucket.errors(), ThreadPoolExecutor(OBJECTS_AT_ONCE) as pool:
        copied = pool.map(lambda one: _copy(bucket, one, target / one.name), objects)
        for one, _ in zip(with_progress(objects, f"copy {bucket.uri}"), copied, strict=True):
            known[one.name] = [one.size, one.etag]
            if one.size > BLOCK:
                _write_state(target, known)
    _write_state(target, known)


def _write_state(target: Path, known: Mapping[str, list[Any]]) -> None:
    with replacing(target / STATE) as partial:
        partial.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")


def _copy(bucket: Bucket, one: _Object, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}{PART_SUFFIX}")
    start = min(part.stat().st_size, one.size) if part.is_file() else 0
    for begin in dict.fromkeys((start, 0)):
        digest = _append(bucket, one, part, begin)
        head = bucket.head(one.key)
        if head is None or _etag(head) != one.etag:
            raise _changed(bucket, one)
        if part.stat().st_size == one.size and (not _MD5.fullmatch(one.etag) or digest == one.etag):
            part.replace(file)
            return
    part.unlink()
    raise StoreError(
        f"{bucket.uri}/{one.name}: its bytes do not have the MD5 {one.etag} of its ETag: upload it again"
    )


def _append(bucket: Bucket, one: _Object, part: Path, start: int) -> str:
    """Write an object from byte `start` on behind the first `start` bytes of `part`; return the MD5 of all."""
    seen = hashlib.md5(usedforsecurity=False)
    with part.open("r+b" if start else "w+b") as file:
        file.truncate(start)
        while block := file.read(BLOCK):
            seen.update(block)
        for block in _blocks(bucket, one, start):
            seen.update(block)
            file.write(block)
    return seen.hexdigest()


def _blocks(bucket: Bucket, one: _Object, start: int) -> Iterator[bytes]:
    if one.size == 0:
        return iter(())
    changed = _changed(bucket, one)
    return read_object(bucket, one.key, start, one.size, lost=changed, wrong=lambda _: changed)


def _changed(bucket: Bucket, one: _Object) -> StoreError:
    return StoreError(f"{bucket.uri}/{one.name}: changed while it was read: start again")
