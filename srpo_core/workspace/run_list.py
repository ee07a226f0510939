"""The list of runs: the records of this checkout, and the runs that only the Prefect server knows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from srpo_core.workspace.run_comparison import Presets
from srpo_core.workspace.run_record import AWAITING_APPROVAL, KILLED, RunRecord

# of Prefect: what has no record here runs in another checkout, has just started, or ended before it had a workspace
_UNKNOWN_STATE: Final = "unknown"
# of Prefect, for a run that waits for approval or is being resumed
_WAITING: Final = frozenset(
    {"suspended", "resuming", "scheduled", "late", "awaitingconcurrencyslot", "pending", "running"}
)


@dataclass(frozen=True)
class ListedRun:
    """One line of the list of runs.

    run: its id, or its name on the server if it has no record here. started: ISO 8601, UTC. settings: those that differ
    from `preset`. objective: metric, value and interval of the gate's decision. refused_by: rules that refuse it.
    """

    run: str
    started: str
    state: str
    recorded: bool
    preset: str | None = None
    settings: Mapping[str, Any] | None = None
    verdict: str | None = None
    reason: str = ""
    objective: Mapping[str, Any] | None = None
    refused_by: tuple[str, ...] = ()
    release: str | None = None
    ref: str | None = None
    flow_run: str | None = None
    flow_run_name: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def list_runs(
    records: Sequence[RunRecord], presets: Presets, on_server: Sequence[Mapping[str, Any]] = ()
) -> list[ListedRun]:
    """Return all runs, the newest first.

    on_server: runs as the API of Prefect describes them. One that is recorded, too, adds to its record only how it ended
    if its process was killed or it waits for approval: the server knows whether somebody cancelled it.
    """
    states = {str(run["id"]): _server_state(run) for run in on_server}
    listed = [_of_record(record, presets, states) for record in records]
    known = {record.flow_run for record in records}
    listed += [_of_server(run) for run in on_server if str(run["id"]) not in known]
    return sorted(listed, key=lambda run: (run.started, run.run), reverse=True)


def objective_text(objective: Mapping[str, Any] | None) -> str:
    """Return metric, value and interval of a decision's objective; empty if it was not measured."""
    if not objective or objective.get("value") is None:
        return ""
    interval = [objective.get(end) for end in ("low", "high")]
    ends = "" if None in interval else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    return f"{objective.get('metric', '')} {objective['value']:+.3f}{ends}"


def _of_record(record: RunRecord, presets: Presets, states: Mapping[str, str]) -> ListedRun:
    preset, settings = presets.compare(record)
    ended_by = states.get(record.flow_run or "", record.state)
    is_told = record.state == KILLED and ended_by not in ("running", "pending")  # the server may not know yet
    is_told |= record.state == AWAITING_APPROVAL and ended_by not in _WAITING
    return ListedRun(
        run=record.run_id,
        started=_iso(record.started),
        state=ended_by if is_told else record.state,
        recorded=True,
        preset=preset,
        settings=settings,
        verdict=record.verdict,
        reason=record.approval or record.reason,
        objective=record.objective,
        refused_by=tuple(rule["name"] for rule in record.rules if rule.get("verdict") == "refuses"),
        release=record.version,
        ref=record.ref,
        flow_run=record.flow_run,
        flow_run_name=record.flow_run_name,
    )


def _of_server(run: Mapping[str, Any]) -> ListedRun:
    started = run.get("start_time") or run.get("expected_start_time") or run.get("created") or ""
    parameters = run.get("parameters") if isinstance(run.get("parameters"), Mapping) else {}
    preset = (parameters or {}).get("profile")  # of another flow named align it may be anything
    name = str(run.get("name") or run["id"])
    return ListedRun(
        run=name,
        started=_iso_text(str(started)),
        state=_server_state(run),
        recorded=False,
        preset=preset if isinstance(preset, str) else None,
        reason=str((run.get("state") or {}).get("message") or ""),
        flow_run=str(run["id"]),
        flow_run_name=name,
    )


def _server_state(run: Mapping[str, Any]) -> str:
    return str(run.get("state_name") or run.get("state_type") or _UNKNOWN_STATE).lower()


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _iso_text(text: str) -> str:
    try:
        return _iso(datetime.fromisoformat(text))
    except ValueError:
        return text


def settings_text(settings: Iterable[str], limit: int) -> str:
    """Join the first `limit` settings, and count the others."""
    every = list(settings)
    more = len(every) - limit
    return ", ".join(every[:limit]) + (f", +{more} more" if more > 0 else "")
