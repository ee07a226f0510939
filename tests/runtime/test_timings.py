import json

import pytest

from srpo_core.config import load_settings
from srpo_core.report.costs import COST_MARK, with_costs
from srpo_core.runtime.timings import costs, key_of, note_stage, timings_file

DVC = """\
stages:
  ingest: {cmd: "true", deps: ["${data}"], params: [seed]}
  train: {cmd: "true", deps: [weights], params: [seed, train]}
"""


@pytest.fixture
def resources(tmp_path, monkeypatch):
    """The tiny preset's resources with three workers, in a small project."""
    from pathlib import Path

    profile = Path(__file__).resolve().parents[2] / "profiles/tiny.yaml"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 3}, data: data}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("one")
    (tmp_path / "weights").write_bytes(bytes(3 * 2**20))
    return load_settings(profile).resources.model_copy(update={"train_workers": 3})


def test_device_hours_are_wall_hours_times_devices(resources):
    note_stage("ingest", 36.0, resources)
    note_stage("train", 720.0, resources)
    ingest, train = costs(["ingest", "train"])
    assert (ingest["wall_hours"], ingest["device_hours"]) == pytest.approx((0.01, 0.01))
    assert (train["wall_hours"], train["device_hours"]) == pytest.approx((0.2, 0.6))
    assert train["kind"] == "CPU process"


def test_stages_that_generate_by_tasks_count_each_device_and_other_stages_count_one(resources, tmp_path):
    generation = ("select", "evaluate", "quantize")
    more = [f'  {stage}: {{cmd: "true", deps: [weights], params: [seed]}}\n' for stage in generation]
    (tmp_path / "dvc.yaml").write_text(DVC + "".join(more))
    wide = resources.model_copy(update={"generate_workers": 32})
    for stage in generation:
        note_stage(stage, 3600.0, wide)
    found = {row["stage"]: (row["devices"], row["device_hours"]) for row in costs(generation)}
    assert found == {"select": (32, 32.0), "evaluate": (32, 32.0), "quantize": (1, 1.0)}


def test_the_last_time_with_the_same_settings_and_inputs_is_used(resources, tmp_path):
    note_stage("train", 100.0, resources)
    note_stage("train", 200.0, resources)
    assert [row["seconds"] for row in costs(["train"])] == [200.0]
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 4}, data: data}")
    assert costs(["train"]) == []
    note_stage("train", 300.0, resources)
    assert [row["seconds"] for row in costs(["train"])] == [300.0]


def test_the_key_changes_with_a_small_input_and_with_the_size_of_a_large_one(resources, tmp_path):
    before = key_of("ingest"), key_of("train")
    (tmp_path / "data/a.txt").write_text("two")
    (tmp_path / "weights").write_bytes(bytes(3 * 2**20 + 1))
    assert key_of("ingest") != before[0]
    assert key_of("train") != before[1]


def test_a_stage_without_its_input_has_no_times(resources, tmp_path):
    note_stage("train", 100.0, resources)
    (tmp_path / "weights").unlink()
    assert costs(["train"]) == []


def test_without_times_there_are_no_costs_and_the_page_is_unchanged(resources):
    assert costs(["ingest", "train"]) == []
    assert with_costs(f"<p>{COST_MARK}</p>", []) == f"<p>{COST_MARK}</p>"


def test_the_page_gets_a_row_for_each_stage_and_their_sum(resources):
    note_stage("ingest", 36.0, resources)
    note_stage("train", 720.0, resources)
    page = with_costs(f"<p>{COST_MARK}</p>", costs(["ingest", "train"]))
    assert COST_MARK not in page
    assert page.count("<tr>") == 4
    assert ">0.6000<" in page
    assert ">0.6100<" in page
    assert "only the last part counts" in page
    assert len(timings_file().read_text().splitlines()) == 2
    json.loads(timings_file().read_text().splitlines()[0])
