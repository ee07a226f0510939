"""The limit of a run's cost: what has been spent is measured, what a stage will cost is planned."""

from pathlib import Path

import pytest
from attempts import record_attempt
from counted_plans import shared_counter

from srpo_core.config import HardwareSettings, load_settings
from srpo_core.errors import BudgetError, ConfigError
from srpo_core.plan import budget
from srpo_core.plan.budget import hours_by_stage, planned_hours, planned_money, require_budget

ROOT = Path(__file__).resolve().parents[2]
DVC = """\
stages:
  ingest: {cmd: "true", deps: [data], params: [seed]}
  embed: {cmd: "true", deps: [data], params: [seed]}
  train: {cmd: "true", deps: [data], params: [seed, train]}
  gate: {cmd: "true", deps: [data], params: [seed, gate]}
"""
HARDWARE = HardwareSettings(tflops=0.1, float32_tflops=0.05, mfu=0.5)
PLANNED = {"embed": 1.0, "train": 8.0}  # hours


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Return a function that gives the tiny preset with a limit, at 10 USD an hour, in a small project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(budget, "hours_by_stage", lambda: PLANNED)
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 3}, gate: 1}")
    (tmp_path / "data").write_text("one")
    tiny = load_settings(ROOT / "profiles/tiny.yaml")

    def limited(max_cost, **resources):
        values = {"price": 10.0, "max_cost": max_cost, "hardware": HARDWARE} | resources
        return tiny.model_copy(update={"resources": tiny.resources.model_copy(update=values)})

    return limited


def test_a_stage_starts_if_what_was_spent_and_its_plan_are_within_the_limit(settings):
    record_attempt("ingest", 1, price=10)
    record_attempt("embed", 1, price=10)
    require_budget("train", settings(100))
    with pytest.raises(BudgetError) as stopped:
        require_budget("train", settings(99.99))
    assert str(stopped.value) == (
        "train is not started: this run has cost 20.00 USD, train would cost 80.00 USD by plan, and resources.max_cost is "
        "99.99 USD. Nothing is lost: to go on, repeat the command with --set resources.max_cost=100 or more; for "
        "'dvc repro' set it in params.yaml"
    )
    assert stopped.value.exit_code == 3


def test_without_a_limit_nothing_is_planned(settings, monkeypatch):
    monkeypatch.setattr(budget, "hours_by_stage", lambda: pytest.fail("planned"))
    record_attempt("ingest", 1e6)
    require_budget("train", settings(None))


def test_every_attempt_of_this_run_counts_and_a_stage_from_the_cache_of_another_run_does_not(settings):
    record_attempt("ingest", 3, price=10, experiment="another")
    record_attempt("embed", 1, price=10, completed=False)
    record_attempt("embed", 1, price=10, continues=True)
    require_budget("train", settings(100))
    with pytest.raises(BudgetError, match=r"has cost 20\.00 USD"):
        require_budget("train", settings(99))


def test_the_inputs_of_earlier_stages_are_not_read(settings, tmp_path):
    (tmp_path / "dvc.yaml").write_text(
        DVC.replace("deps: [data], params: [seed]}", "deps: [large], params: [seed]}")
    )
    (tmp_path / "large").write_text("images")
    record_attempt("ingest", 1, price=10)
    (tmp_path / "large").unlink()
    with pytest.raises(BudgetError, match=r"has cost 10\.00 USD"):
        require_budget("train", settings(89))


def test_stages_after_this_one_do_not_count_and_those_before_it_do_wherever_dvc_yaml_has_them(
    settings, tmp_path
):
    graph = """\
stages:
  gate: {cmd: "true", deps: [made], params: [seed, gate]}
  train: {cmd: "true", deps: [data], params: [seed, train], outs: [made]}
"""
    (tmp_path / "dvc.yaml").write_text(graph)
    (tmp_path / "made").write_text("weights")
    record_attempt("train", 8, price=10)
    with pytest.raises(BudgetError, match=r"has cost 80\.00 USD"):
        require_budget("gate", settings(79))
    (tmp_path / "dvc.yaml").write_text(DVC)
    record_attempt("gate", 100, price=10)
    require_budget("train", settings(80))


def test_a_stage_that_resumes_needs_the_rest_of_its_plan_and_one_that_cannot_needs_all_of_it(
    settings, tmp_path
):
    from srpo_core.runtime.resume import resumable

    record_attempt("train", 6, price=10, completed=False)
    with pytest.raises(BudgetError, match=r"has cost 60\.00 USD, train would cost 80\.00 USD by plan"):
        require_budget("train", settings(100))
    with pytest.raises(InterruptedError), resumable("train"):
        raise InterruptedError
    require_budget("train", settings(80))
    with pytest.raises(BudgetError, match=r"has cost 60\.00 USD, train would cost 20\.00 USD by plan"):
        require_budget("train", settings(79))
    record_attempt("train", 4, price=10, completed=False, continues=True)
    with pytest.raises(BudgetError, match=r"has cost 100\.00 USD, train would cost 0\.00 USD by plan"):
        require_budget("train", settings(99))


def test_a_stage_that_is_forced_to_run_again_costs_its_plan_and_not_its_last_run_too(settings):
    record_attempt("train", 7, price=10)
    require_budget("train", settings(80))


def test_a_stage_without_a_device_starts_while_the_run_is_within_the_limit(settings, monkeypatch):
    monkeypatch.setattr(budget, "hours_by_stage", lambda: pytest.fail("planned"))
    record_attempt("train", 8, price=10)
    require_budget("gate", settings(80))
    with pytest.raises(BudgetError, match=r"gate would cost 0\.00 USD"):
        require_budget("gate", settings(79))


@pytest.mark.parametrize("recorded", [{"price": None}, {"price": 1000, "currency": "JPY"}])
def test_attempts_without_a_price_in_this_currency_count_at_the_present_one(settings, recorded):
    record_attempt("embed", 2, **recorded)
    with pytest.raises(BudgetError, match=r"has cost 20\.00 USD"):
        require_budget("train", settings(99))


def test_the_plan_of_a_stage_is_paid_for_each_of_its_devices(settings):
    resources = settings(1, use_gpu=True, train_workers=8, generate_workers=32).resources
    hours = {"train": 2.0, "select": 3.0, "quantize": 4.0}
    assert planned_money("train", hours, resources) == 160
    assert (
        planned_money("select", hours, resources) == 240
    )  # the plan divides generation among the workers of training
    assert planned_money("quantize", hours, resources) == 40
    assert planned_money("embed", hours, resources) == 0
    assert planned_money("train", hours, settings(1, train_workers=8).resources) == 20


def test_hours_are_planned_by_the_rates_of_the_hardware(settings, monkeypatch):
    monkeypatch.chdir(ROOT)
    hours = planned_hours(settings(1), shared_counter())
    assert {"embed", "check_reward", "train", "select", "evaluate", "quantize"} <= hours.keys()
    assert all(value > 0 for value in hours.values())
    fast = HARDWARE.model_copy(update={"tflops": 0.4, "float32_tflops": 0.2})
    again = planned_hours(settings(1, hardware=fast), shared_counter())
    assert hours["train"] / 4 <= again["train"] < hours["train"] / 3  # the disk is not faster
    with pytest.raises(ConfigError, match=r"resources\.hardware is null"):
        planned_hours(settings(1, hardware=None))


def test_a_run_that_cannot_be_planned_is_refused_with_the_reason(tmp_path, monkeypatch):
    """In a process of its own, as before a stage; here params.yaml names no hardware."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with pytest.raises(ConfigError) as refused:
        hours_by_stage()
    assert str(refused.value) == (
        "resources.max_cost cannot be checked, because the run cannot be planned: resources.hardware is null: set the "
        "rates of the device by which hours are planned. Set max_cost to null to run without a limit"
    )


@pytest.mark.nightly
def test_the_real_plan_is_made_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Nightly: it starts Python and torch, and counts the models again, for 15 seconds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    params = (ROOT / "params.yaml").read_text()
    hardware = "hardware: {tflops: 0.1, float32_tflops: 0.05, mfu: 0.5}"
    (tmp_path / "params.yaml").write_text(params.replace("hardware: null", hardware))
    hours = hours_by_stage()
    monkeypatch.chdir(ROOT)
    resources = load_settings().resources.model_copy(update={"hardware": HARDWARE})
    settings = load_settings().model_copy(update={"resources": resources})
    assert hours == planned_hours(settings, shared_counter())
