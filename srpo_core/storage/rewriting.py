"""Replace files of a version in a directory: those that are damaged, or all that differ and a damaged manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_core.storage.files import copy_file, has_digest, sync_directory, write_file
from srpo_core.storage.incoming import Incoming
from srpo_core.storage.manifest import MANIFEST, encode_sealed


def replace_file(incoming: Incoming, source: Path, directory: Path, name: str, digest: str) -> None:
    """Replace a file of a version by one rename; `digest` is the SHA-256 that the source must have."""
    with incoming.new_directory() as partial:
        copy_file(source, partial / "file", digest, name)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / "file").replace(directory / name)
        sync_directory((directory / name).parent)


def rewrite(
    directory: Path, incoming: Incoming, files: Mapping[str, Path], manifest: Mapping[str, Any]
) -> None:
    """Write a version whose manifest is damaged again: each file that differs, and the manifest last."""
    for name, entry in manifest["files"].items():
        if not has_digest(directory / name, entry["sha256"], entry["bytes"]):
            replace_file(incoming, files[name], directory, name, entry["sha256"])
    with incoming.new_directory() as partial:
        write_file(partial / MANIFEST, encode_sealed(manifest))
        (partial / MANIFEST).replace(directory / MANIFEST)
        sync_directory(directory)
