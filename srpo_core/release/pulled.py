"""Protect the files of a directory that a release is pulled to: only files of earlier pulls are replaced.

`.pulled.json` in the directory lists, for each file, the SHA-256 of every content that a pull wrote there or began to
write. A file with another content was made or edited by the user.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from srpo_core.artifacts import sha256, write_json
from srpo_core.errors import StoreError
from srpo_core.runtime.download import PART_SUFFIX

RECORD: Final = ".pulled.json"
SHOWN: Final = 3  # names of files in an error

Digests = Mapping[str, str]


def require_replaceable(target: Path, wanted: Digests, *, force: bool) -> list[str]:
    """Return the names in `wanted` (name: SHA-256) that are not yet in `target`; nothing is changed.

    force: also replace files that are not from an earlier pull.

    Raises:
        StoreError: `target` has other files of these names, or the record of earlier pulls is damaged.
    """
    record = _read(target)
    missing, foreign = [], []
    for name, digest in wanted.items():
        found = _digest(target / name)
        if found == digest:
            continue
        missing.append(name)
        known = record.get(name, ())
        if found is not None and found not in known:
            foreign.append(name)
        part = target / (name + PART_SUFFIX)
        if not known and (part.exists() or part.is_symlink()):
            foreign.append(name + PART_SUFFIX)
    if foreign and not force:
        more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
        raise StoreError(
            f"{target} has files that are not from an earlier pull ({', '.join(foreign[:SHOWN])}{more}), and nothing "
            "was changed: choose another directory for --to, or replace them with --force"
        )
    return missing


def record_pull(target: Path, wanted: Digests) -> None:
    """Record that this pull writes `wanted` (name: SHA-256); call it before the first file is written."""
    record = _read(target)
    merged = {name: sorted({*record.get(name, ()), digest}) for name, digest in wanted.items()}
    if any(record.get(name) != digests for name, digests in merged.items()):
        write_json(target / RECORD, {**record, **merged})


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file, None if there is nothing, and an empty string if it is something else."""
    if path.is_file():
        return sha256(path)
    return "" if any(_occupied(path)) else None


def _occupied(path: Path) -> Iterator[bool]:
    """Yield whether the path is a directory or a broken link, and whether a file is in the place of a parent."""
    yield path.exists() or path.is_symlink()
    yield from (parent.is_file() for parent in path.parents)


def _read(target: Path) -> dict[str, list[str]]:
    path = target / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): [str(digest) for digest in digests] for name, digests in record.items()}
    except (ValueError, AttributeError, TypeError):
        raise StoreError(
            f"{path} is damaged: delete it, then repeat the pull with --force to replace the files of earlier pulls"
        ) from None
