"""A Prefect server, a worker and a held pipeline, each of which a test can end by any signal and start again."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from held_pipeline import make_held_pipeline
from living import command_line, ended, runs
from prefect_server import Server, deploy

from srpo_core.runtime.file_lock import is_held
from srpo_core.runtime.processes import end_leftovers
from srpo_core.storage import open_store

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
PATIENCE = 300  # seconds, on a busy machine


class Services:
    """Server and worker with a checkout, in a directory of their own; `end` ends all that is left."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "prefect"
        self.home.mkdir()
        self.checkout = make_held_pipeline(root / "checkout")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server = Server(self.home, self.port)
        self.store = str(root / "store")
        self.environment = self.server.environment
        self.server_process: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []
        self.number_of_settings = 0

    def start_server(self, environment: Mapping[str, str] | None = None) -> None:
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.server_process = self._start(
            command, {**self.server.environment, **(environment or {})}, "server"
        )
        self.server.wait("/health", None, lambda answer: answer is True, seconds=PATIENCE)

    def deploy(self) -> None:
        self.environment = {
            **deploy(self.server, self.checkout),
            "SRPO_HOME": str(self.checkout / ".srpo"),
            "SRPO_STORE": self.store,
        }

    def start_worker(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = ["prefect", "worker", "start", "--pool", "local-process"]
        self.workers.append(self._start(command, {**self.environment, **(environment or {})}, "worker"))
        return self.workers[-1]

    def kill_server(self) -> None:
        """End the server and what it has started by kill -9."""
        assert self.server_process is not None
        os.killpg(self.server_process.pid, signal.SIGKILL)
        self.server_process.wait()

    def kill_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """End a worker by kill -9; what it has started lives on."""
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def hold(self, stage: str) -> None:
        """Let the next run stop in a stage."""
        (self.state / "pid").unlink(missing_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        (self.state / "hold").write_text(stage)

    def let_go(self) -> None:
        (self.state / "hold").unlink(missing_ok=True)

    @property
    def state(self) -> Path:
        return self.checkout / ".srpo"

    def held_stage(self, run: str) -> psutil.Process:
        """Wait until a run is held in its stage; return the process of the stage."""
        until = time.monotonic() + PATIENCE
        while not (self.state / "pid").exists():
            shown = self.server.call(f"/flow_runs/{run}")["state"]
            assert shown["type"] not in ENDED, f"{shown}\n{self.logs()}"
            assert time.monotonic() < until, self.logs()
            time.sleep(0.5)
        return psutil.Process(int((self.state / "pid").read_text()))

    def flow_process(self, run: str) -> psutil.Process:
        """Return the process of a run that a worker has started: the outermost whose environment names it."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect" in " ".join(
                    command_line(process)
                ):
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        raise AssertionError(f"run {run} has no process")

    def start_run(self, deployment: str = "align/align", **parameters: Any) -> str:
        found = self.server.call(f"/deployments/name/{deployment}")
        given = {"profile": None, "publish": True, **parameters}
        body = {"parameters": given, "state": {"type": "SCHEDULED"}}
        return self.server.call(f"/deployments/{found['id']}/create_flow_run", body)["id"]

    def retry(self, run: str) -> None:
        """Start a run again as the button Retry of the UI does."""
        again = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        answer = self.server.call(f"/flow_runs/{run}/set_state", {"state": again})
        assert answer["status"] == "ACCEPT", answer

    def retry_when_settled(self, run: str) -> None:
        """Start a run again once its worker has nothing more to report of its end: it reports a crash twice."""
        time.sleep(10)
        self.retry(run)

    def slots_in_use(self) -> int:
        """Return how many runs of the deployment `align` the server counts."""
        return self.server.call("/deployments/name/align/align")["global_concurrency_limit"]["active_slots"]

    def notice_silence(self, flow: str, *, seconds: int) -> None:
        """Let the server's automation for a flow act after this many seconds without a heartbeat."""
        name = f"srpo: runs of {flow} without heartbeat have crashed"
        (found,) = [one for one in self.server.call("/automations/filter", {}) if one["name"] == name]
        found["trigger"]["within"] = seconds
        kept = {key: found[key] for key in ("name", "description", "enabled", "trigger", "actions")}
        self.server.call(f"/automations/{found['id']}", kept, method="PUT")

    def live_workspaces(self) -> list[Path]:
        return [path.parent for path in self.state.glob("runs/*/lock") if is_held(path)]

    def kill_all(self, processes: Sequence[psutil.Process]) -> None:
        """End server, workers, these processes and all below them by kill -9, at once."""
        roots = [psutil.Process(one.pid) for one in (*self.workers, self.server_process) if one is not None]
        everything = {one for root in (*roots, *processes) for one in (root, *root.children(recursive=True))}
        for process in everything:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in (*self.workers, self.server_process):
            if started is not None:
                started.wait()
        self.workers.clear()
        assert ended(everything, 60)

    def leave_stale_files(self, workspace: Path, *, pid: int) -> None:
        """Write what processes that died have left, as if `pid` were one of theirs."""
        busy = {"pid": pid, "cmd": "dvc repro"}
        outputs = [str(workspace / "workspace/runs/train"), str(self.checkout / "runs/train")]
        for top in (self.checkout, workspace / "workspace"):
            held = top / ".dvc/tmp"
            held.mkdir(parents=True, exist_ok=True)
            (held / "rwlock").write_text(json.dumps({path: {"write": busy} for path in outputs}))
            (held / "lock").write_text("")
            git = subprocess.run(
                ["git", "rev-parse", "--absolute-git-dir"],
                cwd=top,
                capture_output=True,
                text=True,
                check=True,
            )
            (Path(git.stdout.strip()) / "index.lock").touch()
        (workspace / "lock").write_text(str(pid))
        session = self.state / "ray/session_2026-11-30_00-00-00_000000_1/sockets"
        session.mkdir(parents=True, exist_ok=True)
        directory = os.open(session, os.O_PATH)  # the path of a socket may have 107 bytes
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(f"/proc/self/fd/{directory}/raylet")
        os.close(directory)

    def wait_until(self, found: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not found():
            assert time.monotonic() < until, self.logs()
            time.sleep(0.5)

    def cancel(self, run: str) -> None:
        """Cancel a run as the button of the UI does."""
        answer = self.server.call(
            f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        )
        assert answer["status"] == "ACCEPT", answer

    def wait_for(self, run: str, *types: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a run has a state of one of these types; return the run."""
        return self.server.wait(
            f"/flow_runs/{run}", None, lambda found: found["state_type"] in types, seconds
        )

    def finish(self, run: str) -> dict[str, Any]:
        """Wait until a run completes, and return it."""
        found = self.wait_for(run, *ENDED)
        assert found["state_type"] == "COMPLETED", f"{found['state']}\n{self.logs()}"
        return found

    def stages_run(self) -> list[str]:
        """Return the stages that were executed, and not taken from the cache, since the last call."""
        ran = self.state / "ran"
        stages = ran.read_text().split() if ran.exists() else []
        ran.unlink(missing_ok=True)
        return stages

    def stages_shown(self, run: str) -> dict[str, str]:
        """Return the newest state that the server has for each task of a run."""
        body = {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {task["name"]: task["state_name"] for task in self.server.call("/task_runs/filter", body)}

    def published(self) -> tuple[list[str], list[str | None]]:
        """Return the versions in the store, and all that the alias `candidate` has pointed to."""
        store = open_store(self.store)
        alias, _ = store.alias("tiny/candidate")
        return sorted(store.versions()), [] if alias is None else [move["to"] for move in alias["history"]]

    def logs(self) -> str:
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(self.root.glob("*.log")))

    def end(self) -> None:
        """End everything that is left."""
        self.let_go()
        started = [*self.workers, *([self.server_process] if self.server_process else [])]
        below = [
            child for one in started if one.poll() is None for child in psutil.Process(one.pid).children(True)
        ]
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for process in below:
            if runs(process):
                process.kill()
        ended(below, 60)
        end_leftovers()

    def _start(
        self, command: Sequence[str], environment: Mapping[str, str], name: str
    ) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, env=dict(environment), stdout=log, stderr=log, start_new_session=True
            )
