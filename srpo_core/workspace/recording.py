"""Keep the record of a run while it runs: at its start, once its settings are known, and at its end."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, load_settings
from srpo_core.config.yaml_text import read_yaml
from srpo_core.credentials import mask_credentials
from srpo_core.errors import SrpoError
from srpo_core.runtime.dvc_yaml import DVC_FILE
from srpo_core.workspace.data_versions import version_read
from srpo_core.workspace.git import git, list_names
from srpo_core.workspace.run_commit import LOCK, commit_run
from srpo_core.workspace.run_record import (
    KILLED,
    RUNNING,
    DataSource,
    RunRecord,
    State,
    flat,
    read_records,
    started_at,
    write_record,
)
from srpo_core.workspace.worktree import Workspace

log = getLogger(__name__)


class Recording:
    """The record of a run that is being made. `release` is set by the caller once there is one.

    state: how the run will have ended if nothing fails.
    """

    def __init__(self, workspace: Workspace, record: RunRecord) -> None:
        self.workspace, self.record = workspace, record
        self.release: str | None = None
        self.state: State = "completed"

    def note_settings(self) -> None:
        """Record the settings that the workspace has by now."""
        settings = load_settings(self.workspace.path / PARAMS_FILE)
        self._write(settings=settings.model_dump(mode="json"))

    def note_report(self, store: str) -> None:
        """Record the URI of the store that gets the report, before it does, so that `srpo clean` finds it."""
        self._write(report_store=store)

    def end(self, state: State, reason: str = "") -> None:
        """Record the end of the run with what its stages have written, and keep its commit.

        A commit or a record that cannot be made does not change what the run did: it is reported in one line.
        """
        try:
            self._write(state=state, ended=datetime.now(UTC), reason=reason, release=self.release)
            if self.record.settings is None:
                return
            self._write(**_outcome(self.workspace, self.record.settings, reason))
            self._write(ref=commit_run(self.workspace))
        except (OSError, SrpoError) as error:
            log.warning(
                "the record of run %s is incomplete: %s", self.record.run_id, " ".join(str(error).split())
            )

    def _write(self, **fields: Any) -> None:
        self.record = self.record.changed_to(**fields)
        write_record(self.workspace.home, self.record)


@contextmanager
def recorded(
    workspace: Workspace,
    *,
    profile: str | None,
    flow_run: str | None = None,
    flow_run_name: str | None = None,
) -> Iterator[Recording]:
    """Record a run in the home directory: `running` now, and how it ended afterwards.

    Runs that were killed before are recorded as killed first, and committed if their workspaces are still there.
    profile: the preset. flow_run, flow_run_name: id and name of the run on the Prefect server.
    """
    _record_killed_runs(workspace)
    record = RunRecord(
        run_id=workspace.run_id,
        state=RUNNING,
        started=started_at(workspace.run_id) or datetime.now(UTC),
        commit=git(workspace.path, "rev-parse", "HEAD"),
        changed=bool(
            list_names(workspace.path, "diff-tree", "-r", "-z", "--name-only", "HEAD", workspace.snapshot)
        ),
        snapshot=workspace.snapshot,
        profile=profile,
        flow_run=flow_run,
        flow_run_name=flow_run_name,
    )
    write_record(workspace.home, record)
    recording = Recording(workspace, record)
    try:
        yield recording
    except BaseException as error:
        # Ctrl-C and the signals of a cancelled run are no errors of the run
        state: State = "failed" if isinstance(error, Exception) else "cancelled"
        recording.end(state, mask_credentials(" ".join(str(error).split()) or type(error).__name__))
        raise
    recording.end(recording.state)


def _record_killed_runs(current: Workspace) -> None:
    """Write down that runs without a record of their end are dead, and commit what their workspaces have."""
    for record in read_records(current.home):
        path = current.home / "runs" / record.run_id / "workspace"
        if record.state != KILLED or record.ended is not None:
            continue
        if (path / DVC_FILE).is_file() and record.settings is not None:
            snapshot = record.snapshot or record.commit
            dead = Workspace(record.run_id, current.checkout, path, current.home, snapshot)
            recording = Recording(dead, record)
            recording.release = record.release
            recording.end(KILLED, "its process was killed")
        else:
            write_record(
                current.home, record.changed_to(ended=datetime.now(UTC), reason="its process was killed")
            )


def _outcome(workspace: Workspace, settings: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Return the fields of a record that the files of a workspace tell."""
    root = workspace.path
    lock = read_yaml(root / LOCK) if (root / LOCK).is_file() else None
    stages: Mapping[str, Any] = (lock or {}).get("stages", {})
    decision = artifacts.read_json(root / artifacts.DECISION) if (root / artifacts.DECISION).is_file() else {}
    return {
        "data": _data(workspace, settings["ingest"], stages),
        "verdict": decision.get("verdict"),
        "reason": reason or decision.get("reason", ""),
        "objective": decision.get("objective"),
        "rules": tuple(decision.get("rules", ())),
        "figures": dict(_figures(root)),
    }


def _data(workspace: Workspace, ingest: Mapping[str, Any], stages: Mapping[str, Any]) -> DataSource:
    """Return the source with the digest that dvc.lock has for it, and the data version that the run has read."""
    known = {dep["path"]: dep.get("md5") for stage in stages.values() for dep in stage.get("deps", ())}
    source, md5 = ingest["source"], known.get(ingest["source"])
    tag = version_read(workspace.path, source, md5, ingest) if md5 and source.startswith("data/") else None
    return DataSource(source=source, md5=md5, tag=tag)


def _figures(root: Path) -> Iterator[tuple[str, float]]:
    """Yield the numbers of the files that dvc.yaml lists as metrics, by file and key."""
    for stage in read_yaml(root / DVC_FILE)["stages"].values():
        for entry in stage.get("metrics", ()):
            file = Path(entry if isinstance(entry, str) else next(iter(entry)))
            if file == artifacts.DECISION or not (root / file).is_file():
                continue
            for key, value in flat(artifacts.read_json(root / file)):
                if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                    yield f"{file.parent.name}.{key}", float(value)
