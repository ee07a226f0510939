"""Compare what a manifest says about a release with the files that it names."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DamageError
from srpo_core.storage import Store

LOCK: Final = "dvc.lock"
# entries of a manifest that repeat a file of the release
REPEATED: Final[Mapping[str, str]] = MappingProxyType({"decision": "decision.json", "proof": "proof.json"})


def require_consistent(store: Store, version: str, manifest: Mapping[str, Any]) -> None:
    """Require that a manifest is of this version, and that its decision and proof are those of the files it names.

    A version is named after its dvc.lock, so another dvc.lock under the same name is found, too.

    Raises:
        DamageError: the manifest contradicts a file of the release, or lacks the file.
    """
    if manifest.get("version") != version:
        raise _contradiction(store, version, f"its manifest is of version {manifest.get('version')!r}")
    lock = manifest["files"].get(LOCK)
    if lock is not None and not lock["sha256"].startswith(version.rpartition("-")[2]):
        raise _contradiction(store, version, f"its name is not the digest of its {LOCK}")
    for entry, name in REPEATED.items():
        if manifest.get(entry) != _read_json(store, version, name, manifest):
            raise _contradiction(store, version, f"{entry} in its manifest differs from its {name}")


def _read_json(store: Store, version: str, name: str, manifest: Mapping[str, Any]) -> Any:
    file = manifest["files"].get(name)
    if file is None:
        raise _contradiction(store, version, f"its manifest names no {name}")
    data = b"".join(store.read(version, name))
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise DamageError(
            f"{name} of {version} does not have its SHA-256: run 'srpo verify', then restore it"
        )
    try:
        return json.loads(data)
    except ValueError as error:
        raise _contradiction(store, version, f"{name} is no JSON: {error}") from None


def _contradiction(store: Store, version: str, fault: str) -> DamageError:
    return DamageError(
        f"release {version} in {store.uri} contradicts itself ({fault}): do not use it; restore it from a backup or "
        "publish it again"
    )
