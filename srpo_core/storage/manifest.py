"""Names, manifests and alias files, in the form that both kinds of store share."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DamageError, StoreError

MANIFEST: Final = "manifest.json"
PAGE: Final = "index.html"  # in the root of a store
REPORTS: Final = "reports"  # in the root of a store
BLOCK: Final = 1 << 20
REWRITTEN: Final = (
    "manifest.json of %s in %s was damaged and is written again: sign it again if it was signed"
)
# SHA-256 over the rest of a manifest or an alias file, which no other digest covers.
SEAL: Final = "seal"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# parts of a release's manifest; the store itself needs only `files` and `content`
_KINDS: Final[Mapping[str, type]] = MappingProxyType(
    {
        "version": str,
        "created_at": str,
        "pipeline": str,
        "formats": dict,
        "decision": dict,
        "proof": dict,
        "git": dict,
        "call": dict,
        "cost": dict,
    }
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# The line of the seal in an encoded object: only a key of the object itself is indented by two spaces.
_SEAL_LINE: Final = re.compile(rb'\n  "seal": "([0-9a-f]{64})"(,?)(?=\n)')
_SHOWN: Final = 10  # names of versions in an error


class DamagedFileError(DamageError):
    """A file in the store is not the one that its manifest describes."""


class DamagedManifestError(DamageError):
    """A manifest in the store is not one that this project has written."""


class FileLostError(DamagedFileError):
    """A file that a manifest names is not in the store."""


def checked_name(name: str, what: str) -> str:
    """Return a name that is safe as a file name and as a key. Raises `StoreError` otherwise."""
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{what} {name!r} is not a valid name: use letters, digits, '.', '_' and '-', at most 128"
        )
    return name


def model_of(version: str) -> str:
    """Return the model of a version `<model>-<digits>`. Raises `StoreError` if it names none."""
    model, _, digits = checked_name(version, "version").rpartition("-")
    if not model or not digits:
        raise StoreError(f"version {version!r} names no model: write <model>-<digits>")
    return model


def is_version(name: str) -> bool:
    """Return whether a name has the form of a version, `<model>-<digits>`."""
    model, _, digits = name.rpartition("-")
    return bool(_NAME.fullmatch(name) and model and digits)


def report_key(run_id: str) -> str:
    """Return the path inside a store of the directory with the report of a run."""
    return f"{REPORTS}/{checked_name(run_id, 'run')}"


def version_key(version: str) -> str:
    """Return the path of a version inside a store."""
    return f"models/{model_of(version)}/versions/{version}"


def signatures_key(version: str) -> str:
    """Return the path of a version's signatures inside a store; they stand beside it, because a version never changes."""
    return f"models/{model_of(version)}/signatures/{version}"


def signature_name(signature: bytes) -> str:
    """Return the file name of a signature, after its digest."""
    return f"{hashlib.sha256(signature).hexdigest()[:16]}.sig"


def alias_key(alias: str) -> str:
    """Return the path of an alias `<model>/<name>` inside a store. Raises `StoreError` if it names no model."""
    model, separator, name = alias.partition("/")
    if not separator:
        raise StoreError(f"alias {alias!r} names no model: write <model>/{alias}")
    return f"models/{checked_name(model, 'model')}/aliases/{checked_name(name, 'alias')}.json"


def content_digest(files: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> str:
    """Return the SHA-256 over the given files' names and SHA-256s: the identity of a version's content."""
    lines = [f"{files[name]['sha256']}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def encode(value: Mapping[str, Any]) -> bytes:
    """Encode as JSON with sorted keys."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def decode(data: bytes, where: str) -> dict[str, Any]:
    """Decode a JSON object. Raises `DamageError` naming `where` otherwise."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{where} is damaged ({error}): restore it from a backup") from None
    if not isinstance(value, dict):
        raise DamageError(f"{where} is damaged (no JSON object): restore it from a backup")
    return value


def encode_sealed(value: Mapping[str, Any]) -> bytes:
    """Encode as JSON with an entry `seal`: the SHA-256 of the JSON without that entry. An old seal is replaced."""
    rest = json.loads(encode(value))  # as a reader will see it: keys become strings
    rest.pop(SEAL, None)
    return encode(rest | {SEAL: hashlib.sha256(encode(rest)).hexdigest()})


def decode_sealed(data: bytes, where: str) -> dict[str, Any]:
    """Decode what `encode_sealed` wrote. Raises `DamageError` naming `where` if any byte differs."""
    value = decode(data, where)
    if SEAL not in value:
        raise DamageError(f"{where} is damaged (it has no seal): restore it from a backup")
    if not _seal_holds(data):
        raise DamageError(f"{where} was altered after it was written: restore it from a backup")
    return value


def _seal_holds(data: bytes) -> bool:
    """Return whether the seal is the SHA-256 of the other bytes, which need not be encoded again for that."""
    found = _SEAL_LINE.search(data)
    if found is None:
        return False
    before, after = data[: found.start()], data[found.end() :]
    if not found[2]:  # the last entry: the one before it ends with a comma, or the object has no other
        before, after = (before[:-1], after) if before.endswith(b",") else (b"{}", after.removeprefix(b"\n}"))
    return hashlib.sha256(before + after).hexdigest().encode() == found[1]


def decode_alias(data: bytes, where: str) -> dict[str, Any]:
    """Decode an alias file, without its seal. Raises `DamageError` naming `where` if it was altered."""
    return {name: entry for name, entry in decode_sealed(data, where).items() if name != SEAL}


def decode_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Decode a manifest and check its parts; its file names stay inside the release.

    Raises:
        DamagedManifestError: it is damaged; the message names `where`.
    """
    try:
        return _decode_manifest(data, where)
    except StoreError as error:
        raise DamagedManifestError(f"{error}, or publish the version again") from None


def _decode_manifest(data: bytes, where: str) -> dict[str, Any]:
    manifest = decode_sealed(data, where)
    files = manifest.get("files")
    if not isinstance(files, dict) or not isinstance(manifest.get("content"), str):
        raise DamageError(f"{where} is damaged (no files or no content digest): restore it from a backup")
    for name, entry in files.items():
        _require_file_entry(name, entry, where)
    for part, kind in _KINDS.items():
        if part in manifest and not isinstance(manifest[part], kind):
            raise DamageError(f"{where} is damaged ({part} is no {kind.__name__}): restore it from a backup")
    _require_formats(manifest.get("formats", {}), files, where)
    if "pipeline" in manifest and not manifest["pipeline"].isidentifier():
        raise DamageError(
            f"{where} is damaged ({manifest['pipeline']!r} names no class): restore it from a backup"
        )
    return manifest


def _require_file_entry(name: str, entry: Any, where: str) -> None:
    """Require that a file stays inside the release on every file system, and that its entry has digest and length."""
    path = PurePosixPath(name)
    if (
        path.is_absolute()
        or ".." in path.parts
        or str(path) != name
        or not name.isprintable()
        or "\\" in name
    ):
        raise DamageError(f"{where} names a file outside its release: {name!r}; do not use this release")
    if (
        not isinstance(entry, dict)
        or not _is_digest(entry.get("sha256"))
        or not _is_length(entry.get("bytes"))
    ):
        raise DamageError(f"{where} is damaged (no SHA-256 or length of {name!r}): restore it from a backup")


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_formats(formats: Mapping[str, Any], files: Mapping[str, Any], where: str) -> None:
    for format_name, names in formats.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name in files for name in names):
            raise DamageError(
                f"{where} is damaged (format {format_name!r} is no list of its files): restore it from a backup"
            )


def require_same(existing: Mapping[str, Any], new: Mapping[str, Any], version: str, uri: str) -> None:
    """Raise `StoreError` if an existing version has other content than the one to publish."""
    if existing["content"] != new["content"]:
        old, now = existing["files"], new["files"]
        different = sorted(
            name
            for name in old.keys() | now.keys()
            if old.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
        )
        raise StoreError(
            f"{uri} already has version {version} with other content (first difference: {different[0]}), and a "
            "version never changes: run 'dvc repro', so that dvc.lock describes what is published"
        )


def require_file(manifest: Mapping[str, Any], name: str, version: str, uri: str) -> Mapping[str, Any]:
    """Return the entry of a file in a manifest. Raises `StoreError` if it has none."""
    entry: Mapping[str, Any] | None = manifest["files"].get(name)
    if entry is None:
        raise StoreError(f"version {version} in {uri} has no file {name!r}")
    return entry


def changed_while_published(name: str) -> StoreError:
    """Return the error for a file that changed between its hashing and its upload."""
    return StoreError(f"{name} changed while it was published: nothing was published, try again")


def wrong_length(name: str, version: str, uri: str, found: int, expected: int) -> DamagedFileError:
    """Return the error for a stored file whose length is not the one in the manifest."""
    return DamagedFileError(
        f"{name} of {version} in {uri} has {found} bytes instead of {expected}: publish it again to repair it, or "
        "restore it from a backup"
    )


def cannot_repair(names: Iterable[str], version: str, uri: str) -> DamagedFileError:
    """Return the error for damaged files of a published version whose local files have other bytes."""
    return DamagedFileError(
        f"the store {uri} has lost or damaged {', '.join(names)} of {version}, and your file has other bytes: publish "
        "from the commit of that version, or restore it from a backup"
    )


def unknown_version(version: str, known: Iterable[str], uri: str) -> StoreError:
    """Return the error for a version that a store does not have."""
    return StoreError(f"{uri} has no version {version!r}: known are {listed(known)}")


def listed(names: Iterable[str]) -> str:
    """Return names for an error, sorted: all of a few, or the first ones and the number of the others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more, see 'srpo releases'" if len(ordered) > _SHOWN else ""
    return (", ".join(ordered[:_SHOWN]) or "none") + more
