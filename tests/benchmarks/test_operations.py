"""The benchmark of operations with few runs, and its parts without a server."""

import json
import subprocess
import sys

import pytest

from srpo_core.workspace.run_record import read_records


def test_percentiles_are_in_milliseconds_and_of_one_value_that_value(benchmark_named):
    operations = benchmark_named("operations")
    assert operations.percentiles([]) == {}
    assert operations.percentiles([0.25]) == {"p50": 250.0, "p95": 250.0, "p99": 250.0}
    values = [number / 1000 for number in range(1, 101)]
    found = operations.percentiles(values)
    assert 50 <= found["p50"] <= 51
    assert 95 <= found["p95"] <= 96


def test_a_row_of_the_table_counts_failed_runs_with_those_that_did_not_end(benchmark_named):
    operations = benchmark_named("operations")
    step = {
        "step": "4 at a time",
        "runs_per_minute": 12.5,
        "run": {"p50": 2500.0, "p95": 61000.0, "p99": 61000.0},
        "failed": ["it was locked"],
        "not_ended": 2,
        "cpu_seconds_per_run": 1.1,
        "refused": 82,
        "server": {"memory_mb": 351.2, "database_mb": 551.3},
        "dashboard": {
            "all": {"p50": 48.9, "p95": 312.2, "p99": 975.3},
            "each": {"log of a run": {"p50": 1.0, "p95": 918.7, "p99": 1000.0}},
            "faults": ["health: timed out"],
        },
    }
    header, _, row = operations.table([step]).splitlines()
    cells = dict(zip(header.strip("| ").split(" | "), row.strip("| ").split(" | "), strict=True))
    assert cells["runs/min"] == "12.5"
    assert cells["seconds of a run p50 / p95"] == "2.5 / 61.0"
    assert cells["failed"] == "3"
    assert cells["slowest by p95"] == "log of a run 919"
    assert cells["answers 503"] == "82"


def test_a_run_of_the_flow_has_the_tasks_of_align(benchmark_named):
    """Without a server: the stages are those of dvc.yaml, and each line of the log belongs to a task."""
    flow = benchmark_named("operations_flow")
    names = [stage.name for stage in flow.stages_of_graph()]
    assert {"ingest", "train", "gate", "quantize"} <= set(names)
    assert len(names) + len(flow.AFTER) == 12


@pytest.mark.nightly
def test_steps_are_measured_on_a_server_and_only_once(benchmark_named, tmp_path, capsys):
    """Nightly: it starts a server twice, of its own, because the others have runs of other tests."""
    operations = benchmark_named("operations")
    given = ["--runs", "4", "--concurrency", "1", "2", "--directory", str(tmp_path)]
    operations.main(given)
    file = tmp_path / "steps.jsonl"
    steps = {line["step"]: line for line in map(json.loads, file.read_text().splitlines())}
    assert list(steps) == [
        "no runs yet",
        "1 at a time",
        "2 at a time",
        "after the runs",
        "runs in the queue",
    ]
    ended = [steps[f"{one} at a time"] for one in (1, 2)]
    assert [one["runs"] for one in ended] == [2, 2]
    assert [one["failed"] for one in ended] == [[], []]
    assert "log of a run" in steps["after the runs"]["dashboard"]["each"]
    assert steps["after the runs"]["dashboard"]["faults"] == []
    assert steps["runs in the queue"]["server"]["database_mb"] > steps["no runs yet"]["server"]["database_mb"]
    before = file.read_text()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(steps)
    # the first step again: the others are not measured twice
    file.write_text("".join(line + "\n" for line in before.splitlines()[1:]))
    operations.main([*given, "--runs", "4"])
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()][-1] == "no runs yet"
    assert len(file.read_text().splitlines()) == len(steps)


def test_the_commands_on_a_checkout_are_measured_with_as_many_runs_as_asked(benchmark_named, tmp_path):
    history = benchmark_named("operations_history")
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    subprocess.run(["git", "init", "--quiet", str(checkout)], check=True)
    history._git(checkout, "commit", "--quiet", "--allow-empty", "-m", "code")
    history.fill(checkout, home, range(3))
    records = read_records(home)
    assert [record.settings["seed"] for record in records] == [2, 1, 0]
    trees = {history._git(checkout, "rev-parse", f"{record.ref}^{{tree}}") for record in records}
    assert len(trees) == 3
    assert history._git(checkout, "show", f"{records[0].ref}:params.yaml").endswith("# 2")
    names = [name for name, _ in history.commands(home)]
    assert {"srpo runs", "srpo runs diff", "srpo clean", "git clone"} <= set(names)
    (listed,) = (command for name, command in history.commands(home) if name == "srpo runs --json, all")
    assert listed == [sys.executable, "-m", "srpo_core", "runs", "--json", "--limit", "3"]
