"""`srpo runs` and `srpo runs diff`, as a user and as a program see them."""

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standin import git

from srpo_core.cli.main import main
from srpo_core.config import load_settings
from srpo_core.workspace.run_record import RunRecord, read_records, write_record

ROOT = Path(__file__).parents[2]
IDS = ("20261129-120000-000000", "20261130-120000-000000")


@pytest.fixture
def srpo(monkeypatch, capsys, tmp_path):
    """Return a function that runs the command in a directory with two runs; it returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    for name in ("PREFECT_API_URL", "SRPO_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/tiny.yaml").write_bytes((ROOT / "profiles/tiny.yaml").read_bytes())
    tiny = load_settings(ROOT / "profiles/tiny.yaml").model_dump(mode="json")
    for seed, run_id in enumerate(IDS):
        rule = {
            "name": "gained",
            "verdict": "refuses" if seed else "holds",
            "value": 1.0 - seed,
            "low": 0.0,
            "high": 1.0,
        }
        record = RunRecord(
            run_id=run_id,
            state="completed",
            started=datetime.strptime(run_id, "%Y%m%d-%H%M%S-%f").replace(tzinfo=UTC),
            commit="c" * 40,
            changed=False,
            profile="tiny",
            settings={**tiny, "seed": seed},
            verdict="refused" if seed else "passed",
            objective={"metric": "judge", "value": 0.25, "low": 0.1, "high": 0.4},
            rules=(rule,),
            figures={"evaluate.judge": 0.5 + seed},
            release=None if seed else f"{tmp_path}/store/models/tiny/versions/tiny-0123",
        )
        write_record(tmp_path / ".srpo", record)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


def test_runs_are_listed_the_newest_first_on_whole_lines(srpo):
    code, out, _ = srpo("runs")
    newest, oldest = out.splitlines()[1:]
    assert code == 0
    assert newest.split()[:6] == [IDS[1], "2026-11-30", "12:00", "completed", "refused", "by"]
    assert "judge +0.250 [+0.100, +0.400]" in newest
    assert "tiny, seed=1" in newest
    assert oldest.split()[-1] == "tiny-0123"


def test_a_narrow_terminal_cuts_off_neither_runs_nor_releases(srpo, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    out = srpo("runs")[1]
    assert all(run_id in out for run_id in IDS)
    assert "…" not in out


def test_the_list_says_how_a_run_comes_back(srpo, tmp_path):
    newest = read_records(tmp_path / ".srpo")[0]
    write_record(tmp_path / ".srpo", newest.changed_to(ref=f"refs/srpo/runs/{newest.run_id}"))
    assert srpo("runs")[1].splitlines()[-1] == (
        "code and results of a run: git checkout refs/srpo/runs/RUN && dvc repro"
    )


def test_runs_as_json_are_complete(srpo):
    runs = json.loads(srpo("runs", "--json")[1])
    assert [run["run"] for run in runs] == [IDS[1], IDS[0]]
    assert runs[0]["settings"] == {"seed": 1}
    assert runs[0]["refused_by"] == ["gained"]
    assert json.loads(srpo("runs", "--json", "--limit", "1")[1]) == runs[:1]


def test_a_limit_says_how_many_runs_are_older(srpo):
    assert srpo("runs", "--limit", "1")[1].splitlines()[-1] == "1 older runs: repeat it with --limit 2"


def test_without_runs_the_next_step_is_named(srpo, tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "other"))
    assert srpo("runs")[1] == "no run yet: 'srpo align' starts one\n"


def test_two_runs_are_compared(srpo):
    code, out, _ = srpo("runs", "diff", "tiny-0123", IDS[1][:8])
    lines = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["seed", "0", "1"] in lines
    assert ["evaluate.judge", "0.5", "1.5", "+1"] in lines
    assert ["gained", "holds", "+1", "[+0,", "+1]", "refuses", "+0", "[+0,", "+1]", "-1"] in lines
    assert ["verdict", "passed", "refused"] in lines
    assert "code     not compared: a run has no commit of its own" in out


def test_a_setting_that_is_an_empty_mapping_in_one_run_is_compared(srpo, tmp_path):
    home = tmp_path / ".srpo"
    first, second = reversed(read_records(home))
    ingest = first.settings["ingest"]
    write_record(home, first.changed_to(settings={**first.settings, "ingest": {**ingest, "columns": {}}}))
    named = {**second.settings, "ingest": {**ingest, "columns": {"value": "x"}}}
    write_record(home, second.changed_to(settings=named))
    for ids, cells in (
        (IDS, ["ingest.columns", "{}", "(absent)"]),
        (IDS[::-1], ["ingest.columns", "(absent)", "{}"]),
    ):
        code, out, err = srpo("runs", "diff", *ids)
        assert (code, err) == (0, "")
        assert cells in [line.split() for line in out.splitlines()]


def test_a_comparison_as_json_is_complete(srpo):
    compared = json.loads(srpo("runs", "diff", IDS[0], IDS[1], "--json")[1])
    assert (compared["first"], compared["second"]) == IDS
    assert compared["settings"] == [{"name": "seed", "first": 0, "second": 1}]
    assert [rule["second"]["verdict"] for rule in compared["rules"]] == ["refuses"]


def test_a_run_that_does_not_exist_is_refused_in_one_line(srpo):
    code, out, err = srpo("runs", "diff", IDS[0], "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("srpo: error: there is no run 'nothing': the newest are 20261130")
    assert err.count("\n") == 1


def test_a_server_that_is_dead_costs_one_line_and_the_records_are_listed(srpo, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://user:secret@127.0.0.1:9/api")
    code, out, err = srpo("runs")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert err.startswith("only the records of this checkout are listed: no Prefect server answers at")
    assert err.count("\n") == 1
    assert "secret" not in err


@pytest.fixture
def old_images(tmp_path, monkeypatch):
    """Make the directory of `srpo` a checkout with an image that was not used for a year, and return the image."""
    for name in (".dvc/config", ".dvc/.gitignore", ".gitignore", "dvc.yaml", "params.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("srpo_core.runtime.ray_sessions.SYSTEM_TMPDIR", str(tmp_path))
    image = tmp_path / ".srpo/images/a.images"
    image.parent.mkdir()
    image.write_bytes(bytes(2_000_000))
    os.utime(image, (0, 0))
    return image


def test_clean_lists_what_is_old_and_removes_it_only_if_asked_to(srpo, old_images, monkeypatch):
    for name in ("TMPDIR", "SRPO_STORE"):
        monkeypatch.delenv(name, raising=False)
    code, out, _ = srpo("clean")
    assert code == 0
    assert out.splitlines() == [
        "would remove         2.0 MB  image cache images/a.images",
        "would remove  2.0 MB in all",
        "next          repeat it with --delete",
    ]
    assert old_images.exists()
    assert srpo("clean", "--delete")[1].splitlines() == [
        "removed              2.0 MB  image cache images/a.images",
        "removed       2.0 MB in all",
    ]
    assert not old_images.exists()
    assert srpo("clean")[1] == "nothing to remove: all was used in the last 30 days, or is kept\n"
    runs = srpo("clean", "--keep-days", "0")[1].splitlines()
    assert runs == [
        f"would remove         0.0 MB  run {IDS[0]}",
        "would remove  0.0 MB in all",
        "next          repeat it with --delete",
    ], "its release is not in the store, and the other run is the newest"
