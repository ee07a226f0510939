"""Measure what one Prefect server bears: runs with the requests of `align`, several at a time, and the dashboard meanwhile.

    python benchmarks/operations.py --runs 1000 --concurrency 1 4 16 64
    python benchmarks/operations.py --database postgresql+asyncpg://prefect@127.0.0.1/prefect --runs 1000

The runs are those of `operations_flow.py`: the task runs, log lines and artifacts of `align`, whose stages do nothing. Each
number of concurrent runs gets an equal share of them. While they run, the requests of the dashboard's pages are sent one
after another. At last as many runs are queued that no worker takes.

With --directory an interrupted benchmark goes on with the first step that is not complete. Its results are in
`steps.jsonl` there, a JSON object for each step; the table at the end has the same figures.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from operations_server import Server, running_server

FLOW = Path(__file__).with_name("operations_flow.py")
POOL = "load"
SECONDS_BETWEEN_ROUNDS = 1.0
ROUNDS_WHEN_IDLE = 20
SECONDS_OF_PROGRESS = 15.0
HOME = {"sort": "START_TIME_DESC", "limit": 10, "page": 1, "flow_runs": {}}
PERIOD = {
    "history_start": "2026-01-01T00:00:00Z",
    "history_end": "2036-01-01T00:00:00Z",
    "history_interval_seconds": 86400 * 365,
}
# by what a person sees; {run} is a run with logs, edges and artifacts
QUERIES: dict[str, tuple[str, Any]] = {
    "health": ("/health", None),
    "list of runs": ("/flow_runs/paginate", HOME),
    "runs by filter": ("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 200}),
    "count of runs": ("/flow_runs/count", {}),
    "history of runs": ("/flow_runs/history", PERIOD),
    "counts of tasks": ("/ui/task_runs/count", {}),
    "list of artifacts": ("/artifacts/latest/filter", {"limit": 50, "sort": "UPDATED_DESC"}),
    "graph of a run": ("/flow_runs/{run}/graph-v2", None),
    "log of a run": ("/logs/filter", {"logs": {"flow_run_id": {"any_": ["{run}"]}}, "limit": 200}),
    "artifacts of a run": ("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": ["{run}"]}}}),
    "queue of a pool": (f"/work_pools/{POOL}/get_scheduled_flow_runs", {"limit": 10}),
}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the percentiles 50, 95 and 99 in milliseconds; of nothing, none."""
    if not seconds:
        return {}
    cuts = statistics.quantiles([*seconds, seconds[-1]], n=100, method="inclusive")
    return {f"p{which}": round(1000 * cuts[which - 1], 1) for which in (50, 95, 99)}


class Dashboard:
    """Sends the requests of the dashboard's pages one after another and notes how long each took."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.seconds: dict[str, list[float]] = {name: [] for name in QUERIES}
        self.faults: list[str] = []
        self._stop = threading.Event()

    def round(self) -> None:
        """Send each request once."""
        run = self._newest_run()
        for name, (path, body) in QUERIES.items():
            if run is None and "{run}" in path + json.dumps(body):
                continue
            start = time.monotonic()
            given = json.loads(json.dumps(body).replace("{run}", str(run)))
            try:
                self.server.call(path.replace("{run}", str(run)), given)
            except OSError as error:
                self.faults.append(f"{name}: {error}")
            self.seconds[name].append(time.monotonic() - start)

    def _newest_run(self) -> str | None:
        ended = {"state": {"type": {"any_": ["COMPLETED"]}}}
        query = {"limit": 1, "sort": "END_TIME_DESC", "flow_runs": ended}
        try:
            found = self.server.call("/flow_runs/filter", query)
        except OSError as error:
            self.faults.append(f"newest run: {error}")
            return None
        return str(found[0]["id"]) if found else None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Send the requests in a thread while the context lasts."""

        def repeat() -> None:
            while not self._stop.is_set():
                self.round()
                self._stop.wait(SECONDS_BETWEEN_ROUNDS)

        thread = threading.Thread(target=repeat)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def figures(self) -> dict[str, Any]:
        """Return the percentiles of all requests and of each, the slowest first, and the failed ones."""
        each = {name: percentiles(seconds) for name, seconds in self.seconds.items() if seconds}
        ranked = dict(sorted(each.items(), key=lambda one: -one[1]["p95"]))
        every = [one for seconds in self.seconds.values() for one in seconds]
        return {"all": percentiles(every), "each": ranked, "requests": len(every), "faults": self.faults}


def idle(server: Server) -> dict[str, Any]:
    """Measure the dashboard while nothing runs."""
    dashboard = Dashboard(server)
    for _ in range(ROUNDS_WHEN_IDLE):
        dashboard.round()
    return {"dashboard": dashboard.figures()}


def run_flows(server: Server, runs: int, concurrency: int, minutes: float, grid: int) -> dict[str, Any]:
    """Run flows for at most so many minutes, and measure throughput and the dashboard meanwhile."""
    dashboard, start, before = Dashboard(server), time.monotonic(), server.state()
    arguments = ["--runs", str(runs), "--concurrency", str(concurrency), "--grid", str(grid)]
    with dashboard.watched(), (server.home / "flows.log").open("a") as log:
        client = subprocess.Popen(
            [sys.executable, str(FLOW), *arguments],
            env=server.environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        limit = threading.Timer(60 * minutes, client.terminate)
        limit.start()
        assert client.stdout is not None
        try:
            ended = list(_with_progress(client.stdout, runs, f"{concurrency} at a time"))
            code = client.wait()
        finally:
            limit.cancel()
            client.kill()
    good = [one["seconds"] for one in ended if one["error"] is None]
    wall = time.monotonic() - start
    return {
        "runs": len(ended),
        "not_ended": runs - len(ended),
        "client_code": code,
        "failed": [one["error"] for one in ended if one["error"]],
        "seconds": round(wall, 1),
        "runs_per_minute": round(60 * len(good) / wall, 1),
        "run": percentiles(good),
        "cpu_seconds_per_run": round(
            (server.state()["cpu_seconds"] - before["cpu_seconds"]) / max(len(ended), 1), 3
        ),
        "refused": server.state()["refused"] - before["refused"],
        "dashboard": dashboard.figures(),
    }


def _with_progress(lines: Iterator[str] | Any, runs: int, what: str) -> Iterator[dict[str, Any]]:
    last = time.monotonic()
    for done, line in enumerate(lines, start=1):
        yield json.loads(line)
        if time.monotonic() - last > SECONDS_OF_PROGRESS:
            last = time.monotonic()
            print(f"{what}: {done} of {runs} runs", file=sys.stderr, flush=True)


def queue_runs(server: Server, runs: int) -> dict[str, Any]:
    """Create runs of a deployment that no worker takes, and measure their creation and the dashboard afterwards."""
    deployment, seconds, faults = _deployment(server), list[float](), list[str]()
    for _ in range(runs):
        start = time.monotonic()
        try:
            server.call(f"/deployments/{deployment}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        except OSError as error:
            faults.append(str(error))
        seconds.append(time.monotonic() - start)
    return {"runs": runs, "create": percentiles(seconds), "failed": faults, **idle(server)}


def _deployment(server: Server) -> str:
    """Return the id of a deployment whose pool has no worker."""
    flow = server.call("/flows/", {"name": "align"})["id"]
    body = {"name": "load", "flow_id": flow, "work_pool_name": POOL, "entrypoint": "flows/align.py:align"}
    return str(server.call("/deployments/", body)["id"])


def steps(server: Server, chosen: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the name of each step, and what measures it."""
    share = chosen.runs // len(chosen.concurrency)
    yield "no runs yet", lambda: idle(server)
    for one in chosen.concurrency:
        yield (
            f"{one} at a time",
            lambda one=one: run_flows(server, share, one, chosen.minutes, chosen.grid),
        )
    yield "after the runs", lambda: idle(server)
    yield "runs in the queue", lambda: queue_runs(server, chosen.runs)


def measure(directory: Path, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the steps that `steps.jsonl` does not have, and return all of them."""
    file = directory / "steps.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    extra = dict(one.partition("=")[::2] for one in chosen.server)
    with running_server(directory / "prefect", chosen.database, extra) as server:
        if not done:
            server.call("/work_pools/", {"name": POOL, "type": "process"})
        for name, step in steps(server, chosen):
            if any(one["step"] == name for one in done):
                continue
            line = {"step": name, **step(), "server": server.state()}
            done.append(line)
            with file.open("a") as output:
                output.write(json.dumps(line) + "\n")
            print(f"{name}: done", file=sys.stderr, flush=True)
    return done


def table(done: Sequence[dict[str, Any]]) -> str:
    """Return the steps as a Markdown table."""
    header = (
        "| step | runs/min | seconds of a run p50 / p95 | failed | CPU s of the server per run | "
        "requests of the dashboard p50 / p95 / p99 ms | slowest by p95 | failed requests | answers 503 | memory MB | database MB |"
    )
    return "\n".join([header, "|---|" + "---:|" * 5 + "---|" + "---:|" * 4, *map(_row, done)])


def _row(step: dict[str, Any]) -> str:
    asked, run, server = step["dashboard"], step.get("run", {}), step["server"]
    slowest = next(iter(asked["each"].items()), None)
    cells = [
        step["step"],
        step.get("runs_per_minute", ""),
        f"{run['p50'] / 1000:.1f} / {run['p95'] / 1000:.1f}" if run else "",
        len(step.get("failed", ())) + step.get("not_ended", 0),
        step.get("cpu_seconds_per_run", ""),
        " / ".join(f"{value:.0f}" for value in asked["all"].values()),
        f"{slowest[0]} {slowest[1]['p95']:.0f}" if slowest else "",
        len(asked["faults"]),
        step.get("refused", ""),
        f"{server['memory_mb']:.0f}",
        f"{server['database_mb']:.0f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main(arguments: list[str]) -> None:
    """Measure the steps and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; without it SQLite")
    parser.add_argument(
        "--directory", type=Path, help="keeps database and results; without it a temporary one"
    )
    parser.add_argument(
        "--server", action="append", default=[], metavar="NAME=VALUE", help="a variable of the server"
    )
    parser.add_argument("--minutes", type=float, default=30, help="limit of each number of concurrent runs")
    parser.add_argument("--grid", type=int, default=64_000, help="bytes of the image before/after of a run")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # so that the server ends, too
    with TemporaryDirectory() as temporary:
        directory = chosen.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        print(table(measure(directory, chosen)))


if __name__ == "__main__":
    main(sys.argv[1:])
