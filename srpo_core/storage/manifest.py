"""What both kinds of store ask of a manifest and of names."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from srpo_core.errors import StoreError

MANIFEST: Final = "manifest.json"
BLOCK: Final = 1 << 20
# SHA-256 over all the rest of a manifest or an alias, which no other digest covers.
SEAL: Final = "seal"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FileLostError(StoreError):
    """A file that a manifest names is not in the store."""


def checked_name(name: str, what: str) -> str:
    """A version or alias that is safe as a file name and as a key. Raises `StoreError` otherwise."""
    if not _NAME.fullmatch(name):
        raise StoreError(f"{what} {name!r} is not a name: use letters, digits, '.', '_' and '-', at most 128")
    return name


def model_of(version: str) -> str:
    """The model that a version `<model>-<digits>` is one of. Raises `StoreError` when it names none."""
    model, _, digits = checked_name(version, "version").rpartition("-")
    if not model or not digits:
        raise StoreError(f"version {version!r} names no model: a version is called <model>-<digits>")
    return model


def version_key(version: str) -> str:
    """Where a version lies in a store of either kind."""
    return f"models/{model_of(version)}/versions/{version}"


def alias_key(alias: str) -> str:
    """Where an alias `<model>/<name>` lies in a store of either kind. Raises `StoreError` when it names no model."""
    model, separator, name = alias.partition("/")
    if not separator:
        raise StoreError(f"alias {alias!r} names no model: write <model>/{alias}")
    return f"models/{checked_name(model, 'model')}/aliases/{checked_name(name, 'alias')}.json"


def content_digest(files: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str:
    """SHA-256 over names and SHA-256 of the files that make a version what it is."""
    lines = [f"{files[name]['sha256']}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def encode(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def decode(data: bytes, where: str) -> dict[str, Any]:
    """JSON that must be an object. Raises `StoreError` naming `where`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is damaged ({error}): restore it from a backup") from None
    if not isinstance(value, dict):
        raise StoreError(f"{where} is damaged (no JSON object): restore it from a backup")
    return value


def encode_sealed(value: Mapping[str, Any]) -> bytes:
    """JSON that carries the SHA-256 of itself without that entry, in place of any that it had."""
    rest = json.loads(encode(value))  # as a reader will have it: keys are text
    rest.pop(SEAL, None)
    return encode(rest | {SEAL: hashlib.sha256(encode(rest)).hexdigest()})


def decode_sealed(data: bytes, where: str) -> dict[str, Any]:
    """What `encode_sealed` wrote, byte for byte. Raises `StoreError` naming `where`."""
    value = decode(data, where)
    if SEAL not in value:
        raise StoreError(f"{where} is damaged (no SHA-256 of its own): restore it from a backup")
    if encode_sealed(value) != data:
        raise StoreError(f"{where} was altered after it was written: restore it from a backup")
    return value


def decode_alias(data: bytes, where: str) -> dict[str, Any]:
    """An alias without its seal. Raises `StoreError` naming `where` when it was altered."""
    return {name: entry for name, entry in decode_sealed(data, where).items() if name != SEAL}


def decode_manifest(data: bytes, where: str) -> dict[str, Any]:
    """A manifest as it was published, whose file names stay inside the release. Raises `StoreError` naming `where`."""
    manifest = decode_sealed(data, where)
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("content"), str):
        raise StoreError(f"{where} is damaged (no files or no content digest): restore it from a backup")
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise StoreError(
                f"{where} names a file outside of its release: {name!r}; do not use this release"
            )
    return manifest


def require_same(existing: Mapping[str, Any], new: Mapping[str, Any], version: str, uri: str) -> None:
    """Raise `StoreError` when a version that is there does not hold what is now to be published."""
    if existing["content"] != new["content"]:
        old, now = existing["files"], new["files"]
        odd = sorted(
            name
            for name in old.keys() | now.keys()
            if old.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
        )
        raise StoreError(
            f"version {version} is in {uri} already with another content (first difference: {odd[0]}), and a "
            "version never changes: run 'dvc repro' again, so that dvc.lock names what is published"
        )


def require_file(manifest: Mapping[str, Any], name: str, version: str, uri: str) -> Mapping[str, Any]:
    """The entry of a file in a manifest. Raises `StoreError` when it has none."""
    entry: Mapping[str, Any] | None = manifest["files"].get(name)
    if entry is None:
        raise StoreError(f"version {version} in {uri} has no file {name!r}")
    return entry


def damaged_on_the_way(name: str) -> StoreError:
    """The error for a file that changed between its digest and its publication."""
    return StoreError(f"{name} changed while it was published: nothing was published, publish again")


def unknown_version(version: str, known: Iterable[str], uri: str) -> StoreError:
    """The error for a version that is not in a store."""
    return StoreError(f"{uri} has no version {version!r}: known are {', '.join(sorted(known)) or 'none'}")
