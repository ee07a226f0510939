"""Measure how commands on a checkout grow with its past runs: their records in the home directory, and their git refs.

    python benchmarks/operations_history.py --runs 10 1000

For each number of runs it prints a JSON object, with CPU seconds and seconds of each command. The records have the
settings of the preset tiny, a rule of the gate for each of its rules, and 60 figures. The checkout is a clone of this one.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from srpo_core.config import load_settings
from srpo_core.workspace.run_record import HISTORY, REF_PREFIX, RunRecord, write_record

ROOT = Path(__file__).parents[1]
SRPO = [sys.executable, "-m", "srpo_core"]
REASON = "at least as good as the base, with room to spare "
NUM_FIGURES = 60


def record_of(number: int, commit: str) -> RunRecord:
    """Return the record of a run, which differs from the others in a setting and in its figures."""
    settings = load_settings(ROOT / "profiles/tiny.yaml").model_dump(mode="json")
    settings["seed"] = number
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    run_id = started.strftime("%Y%m%d-%H%M%S-%f")
    rule = {"verdict": "holds", "value": 0.31, "low": 0.25, "high": 0.36, "reason": REASON * 2}
    return RunRecord(
        run_id=run_id,
        state="completed",
        started=started,
        ended=started + timedelta(minutes=30),
        commit=commit,
        changed=False,
        profile="tiny",
        settings=settings,
        ref=f"{REF_PREFIX}{run_id}",
        verdict="passed",
        reason=REASON,
        objective={"metric": "relative_reward", "value": 0.1 + number / 1e5, "low": 0.08, "high": 0.12},
        rules=tuple({"name": name, **rule} for name in settings["gate"]["rules"]),
        figures={f"evaluate.figure_{one}": one + number / 1e5 for one in range(NUM_FIGURES)},
        release=f"store/releases/tiny-{number:012x}" if number % 3 == 0 else None,
    )


def fill(checkout: Path, home: Path, numbers: Sequence[int]) -> None:
    """Add records with refs to commits of their own, each with another params.yaml."""
    head = _git(checkout, "rev-parse", "HEAD")
    files = [
        line for line in _git(checkout, "ls-tree", "HEAD").splitlines() if not line.endswith("\tparams.yaml")
    ]
    settings = (ROOT / "params.yaml").read_text()
    commands = []
    for number in numbers:
        record = record_of(number, head)
        write_record(home, record)
        blob = _git(checkout, "hash-object", "-w", "--stdin", given=f"{settings}# {number}\n")
        tree = _git(checkout, "mktree", given="\n".join([*files, f"100644 blob {blob}\tparams.yaml"]) + "\n")
        commit = _git(checkout, "commit-tree", tree, "-p", head, "-m", f"Run: {record.run_id}")
        commands.append(f"create {record.ref} {commit}\n")
    _git(checkout, "update-ref", "--stdin", given="".join(commands))


def _git(where: Path, *arguments: str, given: str | None = None) -> str:
    named = ["-c", "user.name=load", "-c", "user.email=load@example.org"]
    done = subprocess.run(
        ["git", *named, *arguments], cwd=where, input=given, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commands(home: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands to measure."""
    names = sorted(path.stem for path in (home / HISTORY).glob("*.json"))
    yield "srpo --help", [*SRPO, "--help"]  # the imports, which no number of runs changes
    yield "srpo runs", [*SRPO, "runs"]
    yield "srpo runs --limit, all", [*SRPO, "runs", "--limit", str(len(names))]
    yield "srpo runs --json, all", [*SRPO, "runs", "--json", "--limit", str(len(names))]
    yield "srpo runs diff", [*SRPO, "runs", "diff", names[0], names[-1]]
    yield "srpo clean", [*SRPO, "clean", "--keep-days", "0"]
    yield "git status", ["git", "status", "--short"]
    yield "git clone", ["git", "clone", "--quiet", "--no-local", ".", "../cloned"]
    yield "git worktree add", ["git", "worktree", "add", "--quiet", "--detach", "../worktree"]


def measure(checkout: Path, home: Path) -> Iterator[dict[str, Any]]:
    """Run each command once and yield its line; a command that fails ends the benchmark."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "SRPO_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "160",
    }
    for name, command in commands(home):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name} has failed: {done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        yield {
            "command": name,
            "cpu_seconds": round(cpu, 2),
            "seconds": round(time.monotonic() - start, 2),
            "lines": len(done.stdout.splitlines()),
        }
    _git(checkout, "worktree", "remove", "--force", "../worktree")
    shutil.rmtree(checkout.parent / "cloned")


def main(arguments: list[str]) -> None:
    """Fill a checkout with more and more runs, and print a line for each number of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 1000], help="numbers of runs, growing")
    chosen = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        checkout, home = Path(temporary, "checkout"), Path(temporary, "home")
        subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(checkout)], check=True)
        done = 0
        for runs in chosen.runs:
            fill(checkout, home, range(done, runs))
            done = runs
            size = sum(path.stat().st_size for path in (home / HISTORY).iterdir())
            lines = {line.pop("command"): line for line in measure(checkout, home)}
            print(
                json.dumps({"runs": runs, "record_mb": round(size / 1e6, 2), "commands": lines}), flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
