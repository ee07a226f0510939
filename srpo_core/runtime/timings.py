"""Record how long stages take, in untracked files: times belong to a machine, not to a result.

Each attempt to run a stage has a file `<home>/timings/<stage>-<key>/<number>.json`; the key is a hash of the stage's
settings, inputs and code. The file is written when the attempt begins, and again every few seconds with the time so
far. So an attempt that was killed counts up to the last of these, and nothing has to run after a kill. The newest key of
a stage in an experiment is noted in `<home>/timings/keys/<experiment>/<stage>`, so that it is found without its inputs.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from srpo_core.artifacts import home, replacing
from srpo_core.config import MEMORY_ONLY, PARAMS_FILE, ResourceSettings, read_values
from srpo_core.errors import ArtifactError
from srpo_core.runtime.dvc_yaml import read_stages, without_keys
from srpo_core.runtime.processes import is_alive, owner_mark
from srpo_core.runtime.resume import SMALL_BYTES, fingerprint, is_unrecorded

BEAT_SECONDS: Final = 5.0
GPU: Final = "GPU"
MACHINE: Final = "machine"
# the stages that can use several GPUs, and the setting with their number
WORKERS: Final[Mapping[str, str]] = {
    "rollouts": "generate_workers",
    "train": "train_workers",
    "select": "generate_workers",
    "evaluate": "generate_workers",
}
WITHOUT_GPU: Final = frozenset({"ingest", "gate", "report"})

log = logging.getLogger(__name__)


class Attempt(BaseModel):
    """One attempt to run a stage.

    experiment: see `experiment_key`; began: time in UTC; seconds: how long it ran; devices: how many of `kind` it used;
    price: of a device per hour in `currency`, None if the settings had none; completed: the stage succeeded; continues:
    it belongs to the same result as the attempt before it; process: see `owner_mark`; beside: another process was running
    the stage when it began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    experiment: str
    began: str
    seconds: Annotated[float, Field(ge=0)]
    devices: Annotated[int, Field(ge=1)]
    kind: Literal["GPU", "machine"]
    price: Annotated[float, Field(gt=0)] | None
    currency: str
    completed: bool
    continues: bool
    process: str = ""
    beside: bool = False

    @property
    def device_seconds(self) -> float:
        """Wall time by the number of devices."""
        return self.seconds * self.devices


@contextmanager
def timed(stage: str, resources: ResourceSettings, *, beat: float = BEAT_SECONDS) -> Iterator[None]:
    """Record the time that the body takes as an attempt to run `stage`.

    A stage whose inputs are missing fails at once, and is not recorded. A record that cannot be written is reported
    and does not end the stage.

    beat: seconds between two writes of the time so far.
    """
    try:
        key = key_of(stage)
    except ArtifactError:
        yield
        return
    attempt = _new_attempt(stage, key, resources)
    path = _new_file(stage, key, attempt)
    if path is None:
        yield
        return
    started, ended = time.monotonic(), threading.Event()

    def note(*, completed: bool = False) -> None:
        seconds = round(time.monotonic() - started, 3)
        _write(path, attempt.model_copy(update={"seconds": seconds, "completed": completed}))

    def keep_noting() -> None:
        while not ended.wait(beat):
            note()

    noting = threading.Thread(target=keep_noting, name="timings", daemon=True)
    noting.start()
    completed = False
    try:
        yield
        completed = True
    finally:
        ended.set()
        noting.join()
        note(completed=completed)


def devices_of(stage: str, resources: ResourceSettings) -> tuple[int, Literal["GPU", "machine"]]:
    """Return how many devices a stage uses, and their kind: GPUs, or else the one machine that it runs on."""
    if not resources.use_gpu or stage in WITHOUT_GPU:
        return 1, MACHINE
    return (getattr(resources, WORKERS[stage]) if stage in WORKERS else 1), GPU


def attempts_of(stage: str, root: Path | None = None) -> list[Attempt]:
    """Return the attempts to run a stage with the current settings and inputs, in order; none without its inputs.

    root: the home directory of the stage's process, by default `home()`.
    """
    try:
        key = key_of(stage)
    except ArtifactError:  # without its inputs a stage has not run with these settings
        return []
    return _read_all(directory_of(stage, key, root))


def continued_attempts(stage: str) -> Sequence[Attempt]:
    """Return the attempts that belong to the same result as one that starts now; none if it begins anew."""
    try:
        return _continued(stage, key_of(stage))
    except ArtifactError:
        return ()


def attempts_in(experiment: str, stage: str, root: Path | None = None) -> list[Attempt]:
    """Return the attempts to run a stage with the inputs that it had last in an experiment; its inputs are not read.

    root: the home directory of the stage's process, by default `home()`.
    """
    try:
        key = _key_file(experiment, stage, root).read_text(encoding="utf-8", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return _read_all(directory_of(stage, key, root)) if key.isalnum() else []


def usual_seconds(stages: Iterable[str], root: Path | None = None) -> dict[str, float]:
    """Return how long stages took when they were last run with these settings, by name; without those that never were.

    root: as in `attempts_in`. A stage that was killed and resumed took the time of all its attempts.
    """
    experiment, found = experiment_key(), {}
    for stage in stages:
        attempts = newest_attempts(attempts_in(experiment, stage, root))
        if attempts and attempts[-1].completed:
            found[stage] = sum(one.seconds for one in attempts)
    return found


def newest_attempts(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return the last attempts that belong together: those of one result, complete or not."""
    attempts = _without_refused(attempts)
    starts = [number for number, one in enumerate(attempts) if not one.continues]
    return attempts[starts[-1] if starts else 0 :]


def key_of(stage: str) -> str:
    """Hash a stage's settings, inputs and code; the key by which the times of this run are found again.

    As for the state to resume from, settings that change only memory are left out.

    Raises:
        ArtifactError: an input is missing.
    """
    return fingerprint(stage, by_size_from=SMALL_BYTES, without=MEMORY_ONLY)


def experiment_key() -> str:
    """Hash the settings that stages depend on: a run that is started again has the same key.

    Settings that change only memory are left out: a run that ran out of memory is started again with others.
    """
    settings = read_values(PARAMS_FILE)
    watched = {
        name: without_keys(stage.watched(settings), MEMORY_ONLY) for name, stage in read_stages().items()
    }
    return sha256(dumps(watched, sort_keys=True).encode()).hexdigest()[:12]


def directory_of(stage: str, key: str, root: Path | None = None) -> Path:
    """Return the directory with the attempts to run a stage, below `root` or `home()`."""
    return (root or home()) / "timings" / f"{stage}-{key}"


def _continued(stage: str, key: str) -> Sequence[Attempt]:
    before = _without_refused(_read_all(directory_of(stage, key)))
    if any(_is_of_other(one) for one in before):
        return ()  # it has its own result, or is refused because that process holds the state
    # a stage that DVC did not record after its success runs again, and resumes: that is one result, too
    if not before or (before[-1].completed and not is_unrecorded(stage)):
        return ()
    return newest_attempts(before)


def _without_refused(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Leave out attempts that did not succeed beside another process; that process has the stage's state."""
    return [one for one in attempts if one.completed or not one.beside]


def _is_of_other(attempt: Attempt) -> bool:
    """Whether another process is running this attempt."""
    return not attempt.completed and attempt.process != owner_mark() and is_alive(attempt.process)


def _new_attempt(stage: str, key: str, resources: ResourceSettings) -> Attempt:
    devices, kind = devices_of(stage, resources)
    return Attempt(
        experiment=experiment_key(),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0,
        devices=devices,
        kind=kind,
        price=resources.price,
        currency=resources.currency,
        completed=False,
        continues=bool(_continued(stage, key)),
        process=owner_mark(),
        beside=any(map(_is_of_other, _read_all(directory_of(stage, key)))),
    )


def _key_file(experiment: str, stage: str, root: Path | None = None) -> Path:
    return (root or home()) / "timings/keys" / experiment / stage


def _new_file(stage: str, key: str, attempt: Attempt) -> Path | None:
    """Write an attempt to a file that no other process has, and return it; None, and a warning, if that fails.

    Its number, not its time, is its place: a clock can be changed.
    """
    directory = directory_of(stage, key)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(_key_file(attempt.experiment, stage)) as partial:
            partial.write_text(key, encoding="utf-8")
        taken = [int(path.stem) for path in directory.glob("*.json") if path.stem.isdecimal()]
        return _first_free(directory, 1 + max(taken, default=0), _text(attempt))
    except OSError as error:
        _warn(error)
        return None


def _first_free(directory: Path, number: int, text: str) -> Path:
    """Write a text to the first new file from a number on; two processes that begin at once get two files."""
    while True:
        path = directory / f"{number:06d}.json"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            number += 1
        else:
            return path


def _write(path: Path, attempt: Attempt) -> None:
    try:
        with replacing(path) as partial:
            partial.write_text(_text(attempt), encoding="utf-8")
    except OSError as error:
        _warn(error)


def _text(attempt: Attempt) -> str:
    return attempt.model_dump_json() + "\n"


def _warn(error: OSError) -> None:
    log.warning("the time of this stage was not recorded: %s", error)


def _read_all(directory: Path) -> list[Attempt]:
    """Read the attempts in order. One that is damaged or cannot be read is reported and left out."""
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            found.append(Attempt.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            log.warning("%s is damaged (%s), so its time is not counted: remove it", path, reason)
        except OSError as error:
            log.warning("%s cannot be read (%s), so its time is not counted", path, error)
    return found
