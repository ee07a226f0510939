"""Runs of the records and of the server in one list, and how two of them differ."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.workspace.run_comparison import ABSENT, Difference, Presets, compare_runs
from srpo_core.workspace.run_list import list_runs, objective_text
from srpo_core.workspace.run_record import DataSource, RunRecord, flat

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def presets():
    return Presets(ROOT)


@pytest.fixture(scope="module")
def tiny():
    return load_settings(ROOT / "profiles/tiny.yaml").model_dump(mode="json")


def record(number, settings, **fields):
    started = START + timedelta(minutes=number)
    return RunRecord(
        **{
            "run_id": f"{started:%Y%m%d-%H%M%S}-000000",
            "state": "completed",
            "started": started,
            "commit": "c" * 40,
            "changed": False,
            "profile": "tiny",
            "settings": settings,
            **fields,
        }
    )


def server_run(number, name, state, **fields):
    return {
        "id": f"id-of-{name}",
        "name": name,
        "state_name": state,
        "state_type": state.upper(),
        "start_time": (START + timedelta(minutes=number)).isoformat(),
        "parameters": {"profile": "flux1_dev"},
        **fields,
    }


def test_settings_are_compared_with_the_preset_of_the_run(tiny, presets):
    changed = {**tiny, "seed": 5, "train": {**tiny["train"], "steps": 3}}
    first, second = list_runs([record(1, changed), record(0, tiny)], presets)
    assert (first.preset, first.settings) == ("tiny", {"seed": 5, "train.steps": 3})
    assert (second.preset, second.settings) == ("tiny", {})


def test_a_run_of_params_yaml_is_compared_with_the_nearest_preset(tiny, presets):
    for name in ("tiny", "flux1_dev", "flux1_dev_lora_24gb"):
        settings = load_settings(ROOT / f"profiles/{name}.yaml").model_dump(mode="json")
        (run,) = list_runs([record(0, {**settings, "seed": 77}, profile=None)], presets)
        assert (run.preset, run.settings) == (name, {"seed": 77})


def test_a_run_that_did_not_know_a_setting_yet_shows_only_what_it_had(tiny, presets):
    old = {key: value for key, value in tiny.items() if key != "report"}
    (run,) = list_runs([record(0, {**old, "former": {"name": 1}})], presets)
    assert run.settings == {"former.name": 1}


def test_a_preset_that_is_no_longer_valid_is_left_out_with_one_line(tmp_path, tiny, caplog):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/own.yaml").write_text("seed: 1\n")
    (tmp_path / "profiles/tiny.yaml").write_bytes((ROOT / "profiles/tiny.yaml").read_bytes())
    (run,) = list_runs([record(0, tiny, profile="own")], Presets(tmp_path))
    assert (run.preset, run.settings) == ("tiny", {})
    assert ["preset own" in one.getMessage() for one in caplog.records] == [True]


def test_the_newest_run_is_first_and_runs_of_the_server_are_among_them(tiny, presets):
    records = [record(3, tiny), record(0, tiny)]
    on_server = [server_run(2, "red-fox", "Running"), server_run(5, "blue-owl", "Cancelled")]
    listed = list_runs(records, presets, on_server)
    assert [(run.run, run.state, run.recorded) for run in listed] == [
        ("blue-owl", "cancelled", False),
        (records[0].run_id, "completed", True),
        ("red-fox", "running", False),
        (records[1].run_id, "completed", True),
    ]
    assert listed[0].started == "2026-11-30T12:05:00Z"
    assert listed[0].preset == "flux1_dev"


@pytest.mark.parametrize(
    ("recorded", "on_server", "shown"),
    [
        ("killed", "Cancelled", "cancelled"),
        ("killed", "Crashed", "crashed"),
        ("killed", "Running", "killed"),
        ("completed", "Crashed", "completed"),
        ("running", "Cancelling", "running"),
    ],
)
def test_a_recorded_run_is_listed_once_and_the_server_tells_only_how_a_killed_one_ended(
    tiny, presets, recorded, on_server, shown
):
    run = record(0, tiny, state=recorded, flow_run="id-of-red-fox")
    listed = list_runs([run], presets, [server_run(0, "red-fox", on_server)])
    assert [(one.run, one.state) for one in listed] == [(run.run_id, shown)]


def test_a_run_of_the_server_without_times_or_parameters_is_listed(presets):
    (run,) = list_runs([], presets, [{"id": "7"}])
    assert (run.run, run.state, run.started, run.preset) == ("7", "unknown", "", None)


@pytest.mark.parametrize("profile", [None, 1, ["tiny"], {"name": "tiny"}])
def test_a_run_of_the_server_whose_profile_is_no_text_is_listed_without_a_preset(presets, profile):
    (run,) = list_runs([], presets, [{"id": "7", "parameters": {"profile": profile}}])
    assert (run.run, run.preset) == ("7", None)


def test_the_objective_is_shown_with_its_interval():
    assert objective_text({"metric": "judge", "value": 0.25, "low": 0.1, "high": 0.4}) == (
        "judge +0.250 [+0.100, +0.400]"
    )
    assert objective_text({"metric": "judge", "value": None}) == ""
    assert objective_text(None) == ""


def rule(verdict, value):
    return {
        "name": "gained",
        "verdict": verdict,
        "value": value,
        "low": value - 1,
        "high": value + 1,
        "margin": 0,
    }


def test_two_runs_differ_in_what_is_different_and_every_rule_is_beside_the_other(tiny):
    first = record(
        0,
        tiny,
        ref="refs/srpo/runs/a",
        verdict="passed",
        rules=(rule("holds", 2.0),),
        figures={"a": 1.0, "b": 2.0},
    )
    second = record(
        1,
        {**tiny, "seed": 4},
        ref="refs/srpo/runs/b",
        verdict="refused",
        rules=(rule("refuses", 0.5),),
        figures={"a": 1.0, "b": 2.5, "c": 1.0},
        data=DataSource(source="data/hpd", md5="0" * 32, tag="data/hpd/000000000000"),
    )
    asked = []
    compared = compare_runs(first, second, lambda *refs: asked.append(refs) or ["srpo_core/errors.py"])
    assert compared.settings == (Difference("seed", 0, 4),)
    assert Difference("verdict", "passed", "refused") in compared.about
    assert Difference("data", ABSENT, "data/hpd/000000000000") in compared.about
    assert compared.figures == (Difference("b", 2.0, 2.5), Difference("c", ABSENT, 1.0))
    assert [one.change for one in compared.figures] == [0.5, None]
    (beside,) = compared.rules
    assert [one["verdict"] for one in (beside.first, beside.second)] == ["holds", "refuses"]
    assert (asked, compared.files) == ([("refs/srpo/runs/a", "refs/srpo/runs/b")], ("srpo_core/errors.py",))
    assert compare_runs(first, record(2, tiny), lambda *_: []).files is None


def test_flat_settings_have_a_key_for_each_value():
    nested = {"a": {"b": 1, "c": {}}, "d": [{"e": 2}, {"e": 3}], "f": [1, 2], "g": None}
    assert dict(flat(nested)) == {"a.b": 1, "a.c": {}, "d[0].e": 2, "d[1].e": 3, "f": [1, 2], "g": None}
