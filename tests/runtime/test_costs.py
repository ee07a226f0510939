"""What stages cost, from the records of their attempts."""

import json

import pytest
from attempts import record_attempt

from srpo_core.report.costs import COST_MARK, with_costs
from srpo_core.runtime.costs import cost_text, measured_cost, money_text, recorded_cost

DVC = """\
stages:
  ingest: {cmd: "true", deps: [data], params: [seed]}
  train: {cmd: "true", deps: [data], params: [seed, train]}
"""


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Return a function that records an attempt, in a small project; see `record_attempt`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("{seed: 0, train: {steps: 3}}")
    (tmp_path / "data").write_text("one")
    return record_attempt


STAGES = ("ingest", "train")


def test_device_hours_are_wall_hours_times_devices_and_money_is_device_hours_times_the_price(record):
    record("ingest", 0.01)
    record("train", 2, devices=8, kind="GPU")
    cost = measured_cost(STAGES)
    ingest, train = cost.stages
    assert (ingest.wall_hours, ingest.device_hours, ingest.money) == (0.01, 0.01, {"USD": 0.025})
    assert (train.wall_hours, train.device_hours, train.money) == (2, 16, {"USD": 40})
    assert (train.devices, train.kind, train.attempts) == (8, "GPU", 1)
    assert cost.total.model_dump() == {
        "wall_hours": 2.01,
        "device_hours": 16.01,
        "money": {"USD": 40.025},
        "priced": True,
    }
    assert cost.this_run is None


def test_all_attempts_of_a_stage_that_was_killed_and_resumed_count(record):
    record("train", 3, devices=8, completed=False)
    record("train", 1, devices=4, completed=False, continues=True)
    record("train", 2, devices=8, continues=True)
    (train,) = measured_cost(STAGES).stages
    assert (train.wall_hours, train.device_hours, train.attempts) == (6, 44, 3)
    assert train.money == {"USD": 110}


def test_of_a_stage_that_ran_again_after_a_success_the_last_result_counts(record):
    record("train", 3, completed=False)
    record("train", 4, continues=True)
    record("train", 1)
    assert measured_cost(STAGES).total.wall_hours == 1
    record("train", 9, completed=False)  # forced to run again, and killed: the result is still the one before
    assert measured_cost(STAGES).total.wall_hours == 1


def test_a_stage_without_a_result_has_no_cost(record):
    assert measured_cost(STAGES) is None
    record("train", 1, completed=False)
    assert measured_cost(STAGES) is None


def test_a_stage_from_the_cache_costs_this_run_nothing_and_the_release_what_it_cost_then(record):
    record("ingest", 1)
    record("train", 2, devices=8)
    cost = measured_cost(STAGES, cached=["train"])
    assert cost.total.money == {"USD": 42.5}
    assert (cost.this_run.device_hours, cost.this_run.money) == (1, {"USD": 2.5})
    assert cost_text(cost) == (
        "17.000 device hours, 42.50 USD in 2 stages; this run 1.000 device hours, 2.50 USD, "
        "the rest is of the cache (train)"
    )
    nothing = measured_cost(STAGES, cached=STAGES)
    assert nothing.this_run.model_dump() == {
        "wall_hours": 0,
        "device_hours": 0,
        "money": {},
        "priced": True,
    }
    everything = measured_cost(STAGES, cached=())
    assert everything.this_run == everything.total
    assert cost_text(everything) == "17.000 device hours, 42.50 USD in 2 stages"


def test_without_a_price_there_are_hours_and_no_money(record):
    record("ingest", 1, price=None)
    cost = measured_cost(STAGES)
    assert (cost.total.money, cost.total.priced) == ({}, False)
    assert cost_text(cost) == "1.000 device hours in 1 stages"
    record("train", 1)
    cost = measured_cost(STAGES)
    assert cost_text(cost) == "2.000 device hours, 2.50 USD for the part that had a price in 2 stages"


def test_money_of_several_currencies_is_not_added(record):
    record("ingest", 1)
    record("train", 1, price=0.001, currency="EUR")
    assert money_text(measured_cost(STAGES).total.money) == "0.001 EUR + 2.50 USD"


def test_a_manifest_gives_back_what_was_written_to_it(record):
    record("ingest", 1)
    record("train", 1 / 3, devices=7)
    cost = measured_cost(STAGES, cached=["ingest"])
    written = json.loads(json.dumps(cost.model_dump(mode="json")))
    assert recorded_cost({"cost": written}) == cost
    assert written["total"]["device_hours"] == 3.333333
    assert written["this_run"]["money"] == {"USD": 5.833333}


@pytest.mark.parametrize(
    "cost",
    [
        {},
        {"stage_seconds": {"train": 60.0}},
        {"stages": []},
        {"stages": "x"},
        {"stages": [{"stage": "train"}]},
        None,
        7,
    ],
)
def test_an_older_or_strange_manifest_has_no_cost(cost):
    assert recorded_cost({"cost": cost}) is None
    assert recorded_cost({}) is None


def test_a_manifest_cannot_put_control_characters_into_a_terminal(record):
    record("train", 1)
    written = measured_cost(STAGES).model_dump(mode="json")
    for key, value in (("stage", "a\x1b[2Jb"), ("money", {"\x1b[2J": 1.0}), ("wall_hours", float("inf"))):
        strange = {"stages": [written["stages"][0] | {key: value}]}
        assert recorded_cost({"cost": strange}) is None


def test_without_times_the_page_is_unchanged(record):
    assert with_costs(f"<p>{COST_MARK}</p>", measured_cost(STAGES)) == f"<p>{COST_MARK}</p>"


def test_the_page_gets_a_row_for_each_stage_and_their_sums(record):
    record("ingest", 0.01, price=None)
    record("train", 0.2, devices=3, completed=False)
    record("train", 0.1, devices=3, continues=True)
    page = with_costs(f"<p>{COST_MARK}</p>", measured_cost(STAGES, cached=["ingest"]))
    assert COST_MARK not in page
    assert page.count("<tr>") == 5
    assert ">0.9000<" in page
    assert ">0.9100<" in page
    assert ">2.25 USD<" in page
    assert ">no price<" in page
    assert "train 2." in page
    assert "ingest ran in an earlier run and came from the cache, so it cost this run nothing" in page


def test_the_page_without_a_price_has_no_column_of_money(record):
    record("ingest", 0.01, price=None)
    page = with_costs(COST_MARK, measured_cost(STAGES, cached=[]))
    assert page.count("<th") == 5  # with <thead>
    assert "this run" not in page
