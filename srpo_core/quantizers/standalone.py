"""`srpo quantize`: write any FLUX checkpoint in several formats, each with a record of its errors."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import sha256, write_json
from srpo_core.errors import ArtifactError, DataError
from srpo_core.quantizers import WrittenFile, chosen_quantizers, convert, num_weights, open_flux
from srpo_core.quantizers.conversion import Format
from srpo_core.quantizers.flux_checkpoint import FluxCheckpoint
from srpo_core.quantizers.opening import TRANSFORMER
from srpo_core.quantizers.source import source_digest
from srpo_core.runtime.file_lock import try_acquire

RECORD: Final = "quantize.json"
LOCK: Final = ".quantize.lock"
SCHEMA_VERSION: Final = 2
# Types that store each weight by itself, without blocks or scales.
_WHOLE: Final = ("F32", "F16", "BF16")

log = getLogger(__name__)

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def quantize_checkpoint(
    source: Path, names: Sequence[str], out: Path, *, stem: str | None, bar: Bar
) -> Iterator[str]:
    """Write `source` in the formats called `names` to `out`/<format>/, in one pass; yields one line per file.

    If the source was quantized already, the first line says so, as do each file's metadata and each format's record.

    A format's record is written last, and a format whose record matches the source is kept, so that the same command
    resumes after a kill.

    Raises:
        ConfigError: a format is unknown or needs a package that is missing.
        DataError: the source is not a FLUX checkpoint, or it is damaged.
        ArtifactError: `out` cannot be written to, or another process writes to it.
    """
    formats = {name: entry for name, (_, entry) in chosen_quantizers(names).items()}
    checkpoint = open_flux(source)
    called = stem or _stem(source)
    if "/" in called:
        raise DataError(f"--name {called} is not a file name: remove the '/'")
    try:
        with _only_writer(out):
            missing, records = _convert_missing(checkpoint, formats, out, called=called, bar=bar)
    except OSError as error:
        raise ArtifactError(
            f"{out} cannot be written to ({error}): free space there or choose another --out, then repeat the command, "
            "which keeps the formats that are complete"
        ) from error
    if checkpoint.warning:
        yield f"warning: {checkpoint.warning}"
    for name in formats:
        for file, entry in records[name]["files"].items():
            state = "" if name in missing else "  kept"
            yield (
                f"{out / name / file}  {entry['bytes'] / 1e9:.3f} GB  "
                f"weights {entry['relative_error']:.2g} off{state}"
            )


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Let one process write to `out` at a time. Raises `ArtifactError` if another one does."""
    lock = try_acquire(out / LOCK)
    if lock is None:
        raise ArtifactError(
            f"another 'srpo quantize' writes to {out}: wait until it ends, or choose another directory for --out"
        )
    with lock:
        try:
            yield
        finally:
            lock.remove_file()


def _convert_missing(
    checkpoint: FluxCheckpoint, formats: Mapping[str, Format], out: Path, *, called: str, bar: Bar
) -> tuple[Mapping[str, Format], dict[str, dict[str, Any]]]:
    """Write the formats that are not complete; return those, and the records of all formats."""
    origin = _origin(checkpoint)
    kept = {name: record for name in formats if (record := _record(out / name, called, origin)) is not None}
    missing = {name: entry for name, entry in formats.items() if name not in kept}
    # A record must never be beside files of another source, whenever this process is killed.
    for name in missing:
        (out / name / RECORD).unlink(missing_ok=True)
    if missing:
        source = source_digest(checkpoint.files)
        with bar(f"quantize {called}", num_weights(checkpoint, missing)) as advance:
            written = convert(checkpoint, missing, out, stem=called, advance=advance)
        for name, files in written.items():
            record = {
                "schema_version": SCHEMA_VERSION,
                "source": origin,
                "name": called,
                "format": name,
                "files": {file.path.name: _described(file) | {"source_sha256": source} for file in files},
            } | ({} if checkpoint.warning is None else {"warning": checkpoint.warning})
            write_json(out / name / RECORD, record)
            kept[name] = record
    return missing, kept


def _described(file: WrittenFile) -> dict[str, Any]:
    changed = [loss for loss in file.losses.values() if loss.dtype not in _WHOLE] or list(
        file.losses.values()
    )
    weights = sum(loss.weights for loss in changed)
    error = sum(loss.relative_error**2 * loss.weights for loss in changed) / weights
    return {
        "bytes": file.num_bytes,
        "sha256": file.sha256,
        "relative_error": error**0.5,
        "tensors": {name: asdict(loss) for name, loss in file.losses.items()},
    }


def _stem(source: Path) -> str:
    """Return the default stem of files written from `source`."""
    if source.is_file():
        return source.stem
    directory = source.resolve()
    return directory.parent.name if directory.name == TRANSFORMER else directory.name


def _origin(checkpoint: FluxCheckpoint) -> list[dict[str, Any]]:
    """Identify a source without reading all of it: name, size and modification time of its files."""
    states = [(path, path.stat()) for path in checkpoint.files]
    return [
        {"file": path.name, "bytes": state.st_size, "changed": state.st_mtime_ns} for path, state in states
    ]


def _record(directory: Path, called: str, origin: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the record of a format if the format is complete and of this source, else None."""
    path = directory / RECORD
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = (record["schema_version"], record["source"], record["name"]) == (
            SCHEMA_VERSION,
            origin,
            called,
        )
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None  # of another program, or truncated by a full disk: the format is written again
    if not same:
        return None
    for name, (size, digest) in files.items():
        file = directory / name
        if not file.is_file() or file.stat().st_size != size:
            return None
        if sha256(file) != digest:
            log.warning("%s does not have the SHA-256 of its %s: it is written again", file, RECORD)
            return None
    return record
