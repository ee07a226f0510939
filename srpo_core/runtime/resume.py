"""The directory from which a killed stage resumes. It is outside the outputs, which DVC deletes before a stage runs.

Its name has a hash of all that determines the result (the stage's settings, inputs and code, as dvc.yaml lists them),
so a run never resumes from the state of another experiment. Settings that change only memory and rounding
(`MEMORY_ONLY`) are left out of the name: after running out of memory, a run resumes with another value of them.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import home, read_json, require, write_json
from srpo_core.config import MEMORY_ONLY, PARAMS_FILE, read_values
from srpo_core.config.yaml_text import read_yaml
from srpo_core.errors import SrpoError
from srpo_core.runtime import file_lock
from srpo_core.runtime.digests import known_digest
from srpo_core.runtime.dvc_yaml import Stage, files_below, read_stages, values_below, without_keys
from srpo_core.runtime.shared_files import Location

LOCK: Final = Path("dvc.lock")
DONE: Final = "done"
ELSEWHERE: Final = "elsewhere.json"
MEMORY: Final = "memory.json"  # the values of MEMORY_ONLY at the last start
SMALL_BYTES: Final = 2**20  # larger inputs are compared by size, because reading weights takes minutes

log = logging.getLogger(__name__)


@contextmanager
def resumable(stage: str) -> Iterator[Path]:
    """Lock a stage's resume directory for one run, and yield it.

    After a success the directory is marked as done and stays: until DVC has recorded the outputs, a kill makes it run
    the stage again. The directory is removed when a stage that reads those outputs starts, which DVC does after it
    has recorded them (`discard_recorded`), or when this stage is forced to run again.

    Raises:
        SrpoError: another running process holds the directory.
    """
    directory = _directory(stage)
    with _held(directory) as holder:
        if holder is not None:
            raise SrpoError(
                f"stage {stage} is running already with settings that resume from the same state (process {holder}): "
                "wait for it, or end it and start again"
            )
        if (directory / DONE).exists() and _recorded(stage, directory):
            _discard(directory)  # DVC runs a recorded stage only with --force: start at step 0
        directory.mkdir(parents=True, exist_ok=True)
        _note_memory(stage, directory)
        yield directory
        (directory / DONE).touch()


def register_external(directory: Path, *elsewhere: Location) -> None:
    """Record files outside a resume directory that are to be deleted with it."""
    write_json(directory / ELSEWHERE, [place.uri for place in elsewhere])


def discard_recorded(starting: str) -> None:
    """Remove the resume directories of stages whose outputs `starting` reads: DVC has recorded those outputs."""
    done = [marker.parent for marker in (home() / "resume").glob(f"*/{DONE}")]
    before = _stages_before(starting) if done else ()
    for directory in done:
        if directory.name.rpartition("-")[0] in before:
            with _held(directory) as holder:
                if holder is None:
                    _discard(directory)


def resume_states(root: Path) -> dict[Path, bool]:
    """Return the resume directories below the home directory `root`, each with whether a process holds it.

    Among them are those that a killed process was removing.
    """
    found = (path for path in (root / "resume").glob("*") if path.is_dir() and not path.is_symlink())
    return {path: file_lock.is_held(_lock_of(_of_removed(path))) for path in sorted(found)}


def discard_state(directory: Path) -> bool:
    """Remove a resume directory with what it has elsewhere; False, and nothing is removed, if a process holds it."""
    original = _of_removed(directory)
    with _held(original) as holder:  # removes what was left of it
        if holder is None and directory == original and directory.is_dir():
            _discard(directory)
    return holder is None


def fingerprint(stage: str, *, by_size_from: float = inf, without: Collection[str] = ()) -> str:
    """Hash a stage's settings, inputs and code, as dvc.yaml lists them, to 12 hex digits.

    Of a file of `by_size_from` bytes or more only the size is hashed. without: dotted keys of settings to leave out.

    Raises:
        ArtifactError: an input is missing.
    """
    settings, definition = _definition(stage)
    watched = without_keys(definition.watched(settings), without)
    digest = hashlib.sha256(json.dumps(watched, sort_keys=True).encode())
    for path in _inputs(definition, settings):
        for file in files_below(path):
            size = file.stat().st_size
            digest.update(f"{file} {known_digest(file) if size < by_size_from else size}\n".encode())
    return digest.hexdigest()[:12]


def is_unrecorded(stage: str) -> bool:
    """Whether a stage succeeded with these settings and inputs, and DVC was killed before it recorded the outputs."""
    directory = _directory(stage)
    return (directory / DONE).exists() and not _recorded(stage, directory)


def can_resume(stage: str) -> bool:
    """Whether a stage has state to resume from, with the current settings and inputs."""
    return _directory(stage).exists()


def key_of(stage: str, settings: Any, *, without: Collection[Path]) -> str:
    """Hash some settings with the inputs and the code of a stage to 12 hex digits: a name for what they determine.

    settings: plain values; without: inputs of the stage that do not matter.

    Raises:
        ArtifactError: an input is missing.
    """
    values, definition = _definition(stage)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in _inputs(definition, values):
        for file in () if path in without else files_below(path):
            digest.update(f"{file} {known_digest(file)}\n".encode())
    return digest.hexdigest()[:12]


def _directory(stage: str) -> Path:
    return home() / "resume" / f"{stage}-{fingerprint(stage, without=MEMORY_ONLY)}"


@contextmanager
def _held(directory: Path) -> Iterator[str | None]:
    """Lock a resume directory; yields None, or the id of the process that holds it."""
    lock = file_lock.try_acquire(_lock_of(directory))
    if lock is None:
        yield file_lock.read_holder(_lock_of(directory))
        return
    with lock:
        lock.write_holder()
        shutil.rmtree(_removed(directory), ignore_errors=True)  # left by a removal that was killed
        yield None


def _lock_of(directory: Path) -> Path:
    return directory.parent / f"{directory.name}.lock"


def _discard(directory: Path) -> None:
    """Remove a locked resume directory, after the external files, which only the directory lists."""
    if (directory / ELSEWHERE).exists():
        for uri in read_json(directory / ELSEWHERE):
            Location(uri).delete()
    # renamed first: after a kill during the removal there must be nothing to resume from
    directory.rename(_removed(directory))
    shutil.rmtree(_removed(directory), ignore_errors=True)


def _removed(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.done")


def _of_removed(path: Path) -> Path:
    """Return the directory of which `_removed` may be given."""
    name = path.name
    is_removed = name.startswith(".") and name.endswith(".done")
    return path.with_name(name.removeprefix(".").removesuffix(".done")) if is_removed else path


def _recorded(stage: str, directory: Path) -> bool:
    """Whether dvc.lock records the result of a finished run of these inputs and settings; see `_note_memory`.

    The run may have had other values of `MEMORY_ONLY` than params.yaml. Large inputs are compared by size.
    """
    if not LOCK.exists():
        return False
    entry = (read_yaml(LOCK) or {}).get("stages", {}).get(stage)
    if entry is None:
        return False
    settings, definition = _definition(stage)
    recorded, watched = entry.get("params", {}).get(str(PARAMS_FILE), {}), definition.watched(settings)
    if without_keys(recorded, MEMORY_ONLY) != without_keys(watched, MEMORY_ONLY):
        return False
    started = directory / MEMORY  # an earlier release of this package did not write it
    if started.exists() and values_below(recorded, MEMORY_ONLY) != read_json(started):
        return False
    known = {dependency["path"]: dependency for dependency in entry["deps"]}
    return all(
        str(path) in known and _matches_record(path, known[str(path)])
        for path in _inputs(definition, settings)
    )


def _matches_record(path: Path, known: Mapping[str, Any]) -> bool:
    files = list(files_below(path))
    if sum(file.stat().st_size for file in files) != known["size"]:
        return False
    if path.is_dir() or known["size"] >= SMALL_BYTES:
        return bool(len(files) == known.get("nfiles", 1))
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "md5").hexdigest() == known["md5"])


def _stages_before(name: str) -> list[str]:
    """Return the names of the stages whose outputs a stage reads."""
    stages = read_stages()
    return [other.name for other in stages.values() if stages[name].reads(other)]


def _note_memory(stage: str, directory: Path) -> None:
    """Record with which values of `MEMORY_ONLY` a stage starts; log those that differ from its last start."""
    settings, definition = _definition(stage)
    values = values_below(definition.watched(settings), MEMORY_ONLY)
    path = directory / MEMORY
    before = read_json(path) if path.exists() else values
    changed = [
        f"{key} {json.dumps(value)} instead of {json.dumps(before.get(key))}"
        for key, value in values.items()
        if before.get(key) != value
    ]
    if changed:
        log.info("stage %s continues with %s", stage, ", ".join(changed))
    write_json(path, values)


def _definition(stage: str) -> tuple[Mapping[str, Any], Stage]:
    """Return the settings and the stage as dvc.yaml defines it."""
    return read_values(PARAMS_FILE), read_stages()[stage]


def _inputs(stage: Stage, settings: Mapping[str, Any]) -> list[Path]:
    return [require(path) for path in stage.inputs(settings)]
