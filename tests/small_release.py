"""Publish a release of a few kilobytes, for tests of what happens to releases later."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from srpo_core.storage import Store
from srpo_core.storage.manifest import content_digest

# the release has these, decision.json and proof.json
NAMES = ("README.md", "tiny-bf16.safetensors", "transformer/weights", "transformer/config.json")
PROOF = {
    "formats": {"bf16": {"relative_error": 4e-3, "psnr": None, "gain_kept": 0.97}},
    "refused": {"q4_0": {"refused": ["12.0 dB to bf16, at least 20"]}},
}


def publish_small(
    store: Store,
    sources: Path,
    number: int,
    *,
    passed: bool = True,
    model: str = "tiny",
    repeats: int = 1000,
    rules: Sequence[Mapping[str, Any]] = (),
    more: Mapping[str, bytes] = MappingProxyType({}),
    parts: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Publish the version `<model>-<number>`, dated by its number. Its files are written to a directory in `sources`.

    repeats: size of each file, in units of about 20 bytes. rules: of the decision. more: further files.
    parts: further parts of the manifest.
    """
    version = f"{model}-{number}"
    source = sources / f"source-{version}"
    source.mkdir()
    decision: dict[str, Any] = {
        "passed": passed,
        "verdict": "passed" if passed else "refused",
        "reason": "every rule holds." if passed else "the subject is lost.",
    }
    if rules:
        decision["rules"] = list(rules)
    contents = {name: f"{name} of {version}".encode() * repeats for name in NAMES}
    contents |= {"decision.json": json.dumps(decision).encode(), "proof.json": json.dumps(PROOF).encode()}
    contents |= more
    files = {name: source / name.replace("/", "-") for name in contents}
    entries = {}
    for name, data in contents.items():
        files[name].write_bytes(data)
        entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "version": version,
        "created_at": f"2026-01-{number:02d}",
        "files": entries,
        "content": content_digest(entries, entries),
        "formats": {"bf16": ["tiny-bf16.safetensors", "transformer/weights"]},
        "git": {"revision": "0" * 40, "diff": None, "untracked": []},
        "decision": decision,
        "proof": PROOF,
        **parts,
    }
    store.publish(version, files, manifest)
    return version
