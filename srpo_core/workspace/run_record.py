"""The record of a run: settings, code, data, verdict, figures and release, in `<home>/history/<run id>.json`.

It is written when the run starts, when its settings are known, and when it ends. It stays when the workspace is removed,
until `srpo clean` removes the run.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from srpo_core.artifacts import replacing
from srpo_core.errors import ConfigError
from srpo_core.runtime import file_lock

HISTORY: Final = "history"  # in the home directory
REF_PREFIX: Final = "refs/srpo/runs/"

# killed: the process ended without a record of its end
# awaiting approval: it has no process until a person decides; it ends as promoted, rejected or undecided
State = Literal[
    "running",
    "completed",
    "failed",
    "cancelled",
    "killed",
    "awaiting approval",
    "promoted",
    "rejected",
    "undecided",
]
RUNNING: Final = "running"
AWAITING_APPROVAL: Final = "awaiting approval"
KILLED: Final = "killed"

log = getLogger(__name__)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DataSource(_Part):
    """The data of a run. md5: of the source, as dvc.lock has it, or None; tag: of the data version, or None."""

    source: str
    md5: str | None = None
    tag: str | None = None


class RunRecord(_Part):
    """What is known of a run.

    profile: the preset it was started with, None for params.yaml of the checkout.
    settings: all of them; None until they are known.
    commit: that its workspace was made from. changed: whether the checkout had other files than that commit. snapshot:
    the git tree of those files.
    ref: the git ref of the commit that has the run's code, settings and dvc.lock.
    flow_run, flow_run_name: its id and name on the Prefect server.
    reason: of the verdict, or the line of the error that ended it.
    objective, rules: of the gate's decision. figures: the numbers of the stages' metrics.
    release: the URI of the published version. approval: what a person has decided about it: who and why.
    report_store: the URI of the store that has the report, or was to get it.
    """

    run_id: str
    state: State
    started: datetime
    commit: str
    changed: bool
    snapshot: str | None = None
    ended: datetime | None = None
    profile: str | None = None
    settings: dict[str, Any] | None = None
    data: DataSource | None = None
    ref: str | None = None
    flow_run: str | None = None
    flow_run_name: str | None = None
    verdict: str | None = None
    reason: str = ""
    objective: dict[str, Any] | None = None
    rules: tuple[dict[str, Any], ...] = ()
    figures: dict[str, float] = {}
    release: str | None = None
    approval: str = ""
    report_store: str | None = None

    @property
    def version(self) -> str | None:
        """The published version, or None."""
        return self.release.rpartition("/")[2] if self.release else None

    def changed_to(self, **fields: Any) -> Self:
        """Return a record with other values of some fields."""
        return self.model_copy(update=fields)


def record_file(home: Path, run_id: str) -> Path:
    """Return the file of a run's record."""
    return home / HISTORY / f"{run_id}.json"


def write_record(home: Path, record: RunRecord) -> None:
    """Write a record, atomically."""
    with replacing(record_file(home, record.run_id)) as partial:
        partial.write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_records(home: Path) -> list[RunRecord]:
    """Read all records, the newest run first. A run that has ended without a record of its end is `killed`.

    A record that cannot be read is left out, and the reason is logged in one line.
    """
    files = sorted((home / HISTORY).glob("*.json"), reverse=True)
    return [record for file in files if (record := _read(home, file)) is not None]


def note_decision(home: Path, flow_run: str, state: State, approval: str) -> None:
    """Record in the newest record of a run on the server how the wait for a person's decision has ended.

    A worker of another checkout carries it out without a record of the run.
    """
    for record in read_records(home):
        if record.flow_run == flow_run:
            write_record(home, record.changed_to(state=state, approval=approval))
            return
    log.info("no record of run %s is in %s: %s", flow_run, home, approval)


def is_live(home: Path, run_id: str) -> bool:
    """Whether the process of a run exists: it holds the lock of its workspace."""
    return file_lock.is_held(home / "runs" / run_id / "lock")


def started_at(run_id: str) -> datetime | None:
    """Return the time that the name of a run has, or None if it has none."""
    try:
        return datetime.strptime(run_id, "%Y%m%d-%H%M%S-%f").replace(tzinfo=UTC)
    except ValueError:
        return None


def find_record(records: list[RunRecord], reference: str) -> RunRecord:
    """Return the run that a reference names: a run's id or its unique beginning, ref, release, or name in Prefect.

    Raises:
        ConfigError: no run or several have this name.
    """
    exact = [record for record in records if reference in _names(record)]
    found = exact or [record for record in records if record.run_id.startswith(_bare(reference))]
    if reference and len(found) == 1:
        return found[0]
    if reference and found:
        names = ", ".join(record.run_id for record in found[:5])
        raise ConfigError(f"several runs are named {reference!r}: choose one of {names}")
    known = ", ".join(record.run_id for record in records[:5]) or "none"
    raise ConfigError(
        f"there is no run {reference!r}: the newest are {known} ('srpo runs' lists them; a run can also be given by its "
        "ref, its release, or its name in Prefect)"
    )


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested settings by dotted key: train.steps, rewards[0].path."""
    if isinstance(values, Mapping) and values:
        for key, value in values.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, (list, tuple)) and any(isinstance(one, Mapping) for one in values):
        for place, value in enumerate(values):
            yield from flat(value, f"{prefix}[{place}]")
    else:
        yield prefix, values


def _names(record: RunRecord) -> set[str | None]:
    return {record.run_id, record.ref, record.flow_run_name, record.flow_run, record.version, record.release}


def _bare(reference: str) -> str:
    return reference.removeprefix(REF_PREFIX)


def _read(home: Path, file: Path) -> RunRecord | None:
    try:
        record = RunRecord.model_validate_json(file.read_bytes())
        if record.state == RUNNING and not is_live(home, record.run_id):
            # read again: it may have ended between the two steps
            again = RunRecord.model_validate_json(file.read_bytes())
            record = again if again.state != RUNNING else again.changed_to(state=KILLED)
    except FileNotFoundError:  # removed meanwhile
        return None
    except ValidationError as error:
        fault = str(error).splitlines()[0]
    else:
        if record.run_id == file.stem:
            return record
        fault = f"it is of run {record.run_id!r}"
    log.warning("%s cannot be read (%s): remove it, or restore it from a backup", file, fault)
    return None
