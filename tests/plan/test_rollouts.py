"""What a plan counts of rollouts that the base generates once."""

from dataclasses import replace
from pathlib import Path

import pytest
from counted_plans import counted_plan

from srpo_core.config import load_settings, parse_settings, patched, read_values
from srpo_core.plan import GB, TERA, Cluster, Plan
from srpo_core.plan.rollouts import num_pairs, num_prompts, num_refreshed, rolled_out_share

ROOT = Path(__file__).resolve().parents[2]
PETA = 1e15


@pytest.fixture(autouse=True)
def _work_in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def train(**rollout):
    """Return the settings of training: ten steps of eight images, cached unless `rollout` says otherwise."""
    values = load_settings(ROOT / "profiles/tiny.yaml").train.model_dump(mode="json")
    changes = {"steps": 10, "batch_size": 8, "rollout": {"source": "cached", **rollout}}
    return type(load_settings(ROOT / "profiles/tiny.yaml").train).model_validate(patched(values, changes))


def cached(**values):
    return train(cached=values)


def changed(plan, **rollout):
    """Return a plan with other rollouts, of which everything that is counted is the same."""
    own = plan.settings.train.rollout
    cached = own.cached.model_copy(update=rollout.pop("cached", {}))
    settings = plan.settings.model_copy(
        update={
            "train": plan.settings.train.model_copy(
                update={"rollout": own.model_copy(update={**rollout, "cached": cached})}
            )
        }
    )
    return Plan(replace(plan.case, settings=settings))


def test_there_is_a_pair_for_each_prompt_and_number_and_none_for_another_source():
    assert (num_prompts(cached()), num_pairs(cached())) == (80, 80)
    assert num_pairs(cached(images_per_prompt=3)) == 240
    few = cached(num_prompts=20, images_per_prompt=3)
    assert (num_prompts(few), num_pairs(few)) == (20, 60)
    assert num_prompts(cached(num_prompts=500)) == 80
    online = train(source="online", cached={"num_prompts": 20, "refresh_every": 2})
    assert (num_prompts(online), num_pairs(online), num_refreshed(online)) == (80, 0, 0)


def test_refreshing_pairs_that_are_used_once_costs_what_online_costs_after_the_first_block():
    assert rolled_out_share(train(source="online")) == 1
    assert rolled_out_share(train(source="offline")) == rolled_out_share(cached()) == 0
    assert num_refreshed(cached(refresh_every=4)) == 6 * 8
    assert rolled_out_share(cached(refresh_every=4)) == pytest.approx(0.6)
    assert num_refreshed(cached(refresh_every=10)) == 0
    # 20 prompts: blocks of 32, 32 and 16 samples
    assert num_refreshed(cached(refresh_every=4, num_prompts=20)) == 20 + 16
    assert num_refreshed(cached(refresh_every=4, num_prompts=20, images_per_prompt=2)) == 32 + 16


def flux(blocks):
    """Return the plan of flux1_dev on 32 GPUs, in which a share of the blocks recomputes its activations."""
    path = ROOT / "profiles/flux1_dev.yaml"
    changes = {"train": {"compute": {"checkpoint_blocks": blocks}}}
    settings = parse_settings(patched(read_values(path), changes), str(path))
    return counted_plan(settings, Cluster(32, 80 * GB, 2.5, 0.4, 989 * TERA, 300 * GB))


@pytest.mark.pipeline
def test_the_papers_run_needs_a_third_of_the_flops_with_cached_rollouts():
    """The figures of docs/algorithm.md: from 767 PFLOP to at most 230 in the first run, and 200 in each later one."""
    online, less = flux(1.0), flux(0.9)
    once = changed(online, source="cached")
    few = changed(online, source="cached", num_inference_steps=4, cached={"num_prompts": 152})
    lean = changed(less, source="cached", num_inference_steps=4, cached={"num_prompts": 152})
    for name, plan in {"online": online, "cached": once, "few": few, "lean": lean}.items():
        first, later = plan.flops_of_first_run / PETA, plan.flops_of_later_runs / PETA
        print(f"{name}: {first:.1f} PFLOP, later {later:.1f}; step {plan.step_peak / GB:.1f} GB")
    assert online.flops_of_first_run / PETA == pytest.approx(767, rel=0.01)
    assert once.flops_of_first_run == pytest.approx(online.flops_of_first_run, rel=0.01)
    assert few.flops_of_later_runs == once.flops_of_later_runs == pytest.approx(201 * PETA, rel=0.01)
    assert lean.flops_of_first_run <= few.flops_of_first_run <= 230 * PETA
    assert lean.flops_of_later_runs <= 200 * PETA
    assert once.step_peak < lean.step_peak < online.step_peak
    assert once.peaks["rollouts"] < once.peaks["select"], "no scorers, no adapters"
    assert online.hours_of("train") > once.hours_of("train")
    assert once.hours_of("rollouts") > few.hours_of("rollouts") > online.hours_of("rollouts") == 0


def test_the_stage_is_planned_only_for_cached_rollouts():
    settings = parse_settings(read_values(ROOT / "profiles/tiny.yaml"), "tiny")
    online = counted_plan(settings, Cluster(1, 16 * GB, 1.0, 0.4, 1 * TERA, 1 * GB))
    assert (
        "rollouts"
        not in {spent.stage for spent in online.spending} | online.peaks.keys() | online.hosts.keys()
    )
    plan = changed(online, source="cached", cached={"num_prompts": 40})
    (made,) = [spent for spent in plan.spending if (spent.stage, spent.what) == ("rollouts", "generation")]
    assert made.detail == "40 pairs on one device, which later runs reuse"
    calls = 40 * settings.train.rollout.num_inference_steps
    call = plan.case.counts.velocity[False].flops
    assert made.seconds == pytest.approx(calls * plan.cluster.seconds(call, half=False))
    assert plan.flops_of_first_run - plan.flops_of_later_runs == pytest.approx(calls * call)
    assert {"rollouts"} <= plan.peaks.keys() & plan.hosts.keys()
    assert plan.flops["rollout"] == 0
    anew = changed(online, source="cached", cached={"refresh_every": 15})
    assert anew.flops["rollout"] == pytest.approx(online.flops["rollout"] / 2)


def test_the_command_prints_both_figures(monkeypatch, capsys):
    from srpo_core.__main__ import main

    words = "srpo plan --profile tiny --gpus 1 --gpu-memory 16 --set train.rollout.source=cached"
    monkeypatch.setattr("sys.argv", words.split())
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "first run, with the stage rollouts" in said
    assert "each later run, which finds all pairs" in said
