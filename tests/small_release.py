"""A release of a few kilobytes, for tests of what becomes of releases."""

import hashlib
from pathlib import Path

from srpo_core.storage import Store
from srpo_core.storage.manifest import content_digest

NAMES = ("README.md", "tiny-bf16.safetensors", "transformer/weights", "transformer/config.json")


def publish_small(
    store: Store, sources: Path, number: int, *, passed: bool = True, model: str = "tiny"
) -> str:
    """Publish the version `<model>-<number>`; the number is also its age. Its files are written below `sources`."""
    version = f"{model}-{number}"
    source = sources / f"source-{version}"
    source.mkdir()
    files = {name: source / name.replace("/", "-") for name in NAMES}
    entries = {}
    for name, path in files.items():
        data = f"{name} of {version}".encode() * 1000
        path.write_bytes(data)
        entries[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest = {
        "version": version,
        "created_at": f"2026-01-{number:02d}",
        "files": entries,
        "content": content_digest(entries, entries),
        "formats": {"bf16": ["tiny-bf16.safetensors", "transformer/weights"]},
        "decision": {"passed": passed, "reason": "the subject is lost."},
    }
    store.publish(version, files, manifest)
    return version
