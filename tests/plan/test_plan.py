"""Compare the plan with the cost model of the reference (FLUX.1-dev) and with a measured step (tiny)."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from counted_plans import counted_plan

from srpo_core.config import NULL, load_settings, parse_settings, patched, read_values
from srpo_core.errors import ConfigError
from srpo_core.plan import GB, TERA, Case, Cluster, Counts, Plan, Sizes, remedies
from srpo_core.plan.counting import Counted, Forward, Phase
from srpo_core.plan.making import Counter
from srpo_core.plan.memory import gathered_bytes
from srpo_core.plan.remedies import REMEDIES
from srpo_core.plan.table import alternatives, per_pair
from srpo_core.plan.traffic import traffic_across_copies
from srpo_core.preflight.consistency import require_consistent

ROOT = Path(__file__).resolve().parents[2]


def cluster(gpus, memory=80.0):
    return Cluster(gpus, memory * GB, 2.5, 0.4, 989 * TERA, 300 * GB)


def settings(profile, **patch):
    path = ROOT / f"profiles/{profile}.yaml"
    return parse_settings(patched(read_values(path), patch), str(path))


@pytest.fixture(autouse=True)
def _work_in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def flux():
    """One image per device on 8 devices, as in the table of the cost model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train = {"batch_size": 8, "compute": {"gather_rollout": False}}
        return counted_plan(settings("flux1_dev", train=train), cluster(8))


@pytest.mark.pipeline
def test_the_flops_of_a_flux_step_match_the_cost_model(flux):
    every = sum(flux.flops.values()) / TERA
    print(
        {name: f"{flops / TERA:.2f} TFLOP" for name, flops in flux.flops.items()}, f"{every:.1f} TFLOP a step"
    )
    assert every == pytest.approx(1262.28, rel=0.10)
    assert flux.flops["rollout"] / sum(flux.flops.values()) == pytest.approx(0.7384, rel=0.02)
    assert flux.flops["rollout"] / TERA == pytest.approx(932.05, rel=0.02)
    assert flux.flops["transformer"] / TERA == pytest.approx(298.20, rel=0.03)
    assert flux.flops["reward"] / TERA == pytest.approx(1.55, rel=0.15), (
        "text features are kept, not computed"
    )
    # The reference also computes unused gradients of the VAE's weights (9.8 TFLOP); we recompute the decoder's
    # forward pass.
    assert 30.24 - 9.8 < flux.flops["decoder"] / TERA < 1.5 * (30.24 - 9.8)


def without_early_stop(plan):
    """Return the peak bytes of a step without the judge of early stop, which the cost model does not have."""
    return plan.step_peak - plan.memory["judge of early stop"]


@pytest.mark.pipeline
def test_the_memory_of_flux_matches_the_cost_model(flux):
    print(
        {part: f"{size / GB:.2f} GB" for part, size in flux.memory.items()}, f"{flux.step_peak / GB:.1f} GB"
    )
    assert flux.state / GB == pytest.approx(23.8, rel=0.05)
    # The cost model's 32.7 GB: checkpointed VAE, bfloat16 gathers, 16-bit reward weights, no early stop. Ours are in float32.
    assert without_early_stop(flux) / GB == pytest.approx(32.7 + 2 * 986_109_441 / GB, rel=0.10)


@pytest.mark.pipeline
def test_the_time_of_flux_matches_the_cost_model(flux):
    print(
        f"{flux.compute_seconds:.2f} s computing, {flux.traffic_seconds:.2f} s exchanging {flux.traffic / GB:.0f} GB"
    )
    assert flux.compute_seconds == pytest.approx(3.2, rel=0.05)
    assert flux.traffic_seconds == pytest.approx(2.3, rel=0.05)


# GB of weights, gradients and moments of 261 M adapter parameters: replicated in the cost model, sharded here
ADAPTER_STATE = 4.2
REWARD_IN_FULL = 2 * 986_109_441 / GB  # float32 here, 16 bits in the cost model


@pytest.fixture(scope="module")
def adapters():
    """Plans of flux1_dev_lora with one image per device; calls are counted once for all device counts."""

    @cache
    def counted(shard, checkpoint_decode):
        return counted_plan(settings_of(1, shard, checkpoint_decode), cluster(1))

    def settings_of(gpus, shard, checkpoint_decode):
        compute = {"checkpoint_decode": checkpoint_decode, "gather_rollout": False}
        patch = {"batch_size": gpus, "compute": compute}
        return settings("flux1_dev_lora", train=patch, resources={"shard": shard})

    def plan(gpus, *, shard, checkpoint_decode):
        one = counted(shard, checkpoint_decode)
        case = Case(
            settings_of(gpus, shard, checkpoint_decode), cluster(gpus), one.case.sizes, one.case.counts
        )
        return Plan(case)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield plan


@pytest.mark.pipeline
@pytest.mark.parametrize(("gpus", "gigabytes"), [(8, 14.2), (32, 12.0), (1, 35.1)])
def test_the_memory_of_adapters_matches_the_cost_model(adapters, gpus, gigabytes):
    """The cost model gives the peak of the transformer's backward pass; the decoder's, before it, is higher in the plan."""
    plan = adapters(gpus, shard=gpus > 1, checkpoint_decode=True)
    sizes = plan.case.sizes
    trained, frozen = 16 * sizes.trained, 2 * (sizes.all - sizes.trained)
    assert trained / GB == pytest.approx(ADAPTER_STATE, rel=0.01)
    assert frozen / GB == pytest.approx(23.8, rel=0.01)
    assert plan.state == pytest.approx((trained + frozen) / gpus)
    beside = plan.memory["VAE and reward"] + plan.memory["device's own"]
    on_the_way_back = plan.state + beside + plan.case.counts.call.peak_after + gathered_bytes(plan.case)
    print(
        f"{gpus}: {on_the_way_back / GB:.1f} GB on the way back, {without_early_stop(plan) / GB:.1f} GB at most"
    )
    expected = gigabytes - ADAPTER_STATE * (gpus - 1) / gpus + REWARD_IN_FULL
    assert on_the_way_back / GB == pytest.approx(expected, rel=0.10)
    half_of_the_decoder = 0.5 * 10.2 * GB  # checkpointing keeps fewer of its activations
    assert on_the_way_back < without_early_stop(plan) < on_the_way_back + half_of_the_decoder


@pytest.mark.pipeline
def test_the_reference_setup_with_adapters_on_one_device_matches_the_cost_model(adapters):
    """Without decoder checkpointing and with a float32 reward, both models have their peak in the decoder."""
    plan = adapters(1, shard=False, checkpoint_decode=False)
    print(
        {part: f"{size / GB:.2f} GB" for part, size in plan.memory.items()}, f"{plan.step_peak / GB:.1f} GB"
    )
    assert without_early_stop(plan) / GB == pytest.approx(47.1, rel=0.10)


def peak_of_a_step(job):
    """Return the peak bytes of a worker's second step: weights and moments plus what the allocator added."""
    from torch.profiler import ProfilerActivity, profile

    from srpo_core.training.worker import Worker

    worker = Worker(job, rank=0, world=1, device=torch.device("cpu"))
    worker.step(1)
    worker.learner.optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        worker.step(2)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    weights = [*worker.model.transformer.parameters(), *worker.model.vae.parameters()]
    weights += list(worker.learner.reward.parameters())
    moments = [t for state in worker.learner.optimizer.state.values() for t in state.values()]
    return most + sum(t.numel() * t.element_size() for t in (*weights, *moments))


@pytest.mark.parametrize(
    ("method", "checkpoint"), [("srpo", 0.0), ("srpo", 1.0), ("dance_grpo", 0.0), ("dance_grpo", 1.0)]
)
def test_the_planned_peak_matches_the_measured_peak_on_the_tiny_profile(job, monkeypatch, method, checkpoint):
    patch = {
        "train": {
            "method": method,
            "batch_size": 8 if method == "srpo" else 4,
            "early_stop": NULL,
            "compute": {"checkpoint_blocks": checkpoint},
            # three of four steps are trained: from the second on, gradients are in memory as the plan says
            "dance_grpo": {"timestep_fraction": 1.0},
            "rollout": {"num_inference_steps": 2 if method == "srpo" else 4},
        }
    }
    small = settings("tiny", **patch)
    plan = counted_plan(small, cluster(1))
    monkeypatch.chdir(job.inputs.path)
    measured = peak_of_a_step(replace(job, train=small.train))
    print(f"planned {plan.step_peak / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert plan.step_peak == pytest.approx(measured, rel=0.10)


@pytest.mark.parametrize("method", ["srpo", "refl", "draft_k", "dance_grpo"])
def test_the_planned_flops_of_a_step_are_those_of_the_trainer(job, monkeypatch, method):
    """Products and convolutions; the reward keeps the features of texts that it has seen."""
    from torch.utils.flop_counter import FlopCounterMode

    from srpo_core.training.worker import Worker

    train = {
        "method": method,
        "batch_size": 2,
        "early_stop": NULL,
        "rollout": {"num_inference_steps": 4},
        "draft": {"last_steps": 3},
        "dance_grpo": {"group_size": 3, "timestep_fraction": 1.0, "updates_per_rollout": 2},
    }
    small = settings("tiny", train=train)
    planned = counted_plan(small, cluster(1)).flops
    monkeypatch.chdir(job.inputs.path)
    worker = Worker(replace(job, train=small.train), rank=0, world=1, device=torch.device("cpu"))
    worker.step(1)
    with FlopCounterMode(display=False) as counted:
        worker.step(1)
    expected = sum(flops for phase, flops in planned.items() if phase != "optimizer")
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.05)


def flux_plan(gpus=8, memory=80.0, **patch):
    """Return a plan from the cost model's counts, so that only the arithmetic is tested."""
    call = Counted(
        1,
        rollout=Phase(37.28 * TERA),
        transformer=Phase(149.1 * TERA, int(0.93 * GB)),
        decode=Phase(10.2 * TERA, int(10.2 * GB)),
        reward=Phase(0.7 * TERA, int(1.5 * GB)),
        peak_rollout=int(0.9 * GB),
        peak_before=int(12.8 * GB),
        peak_after=int(6.7 * GB),
    )
    velocity = dict.fromkeys((True, False), Forward(37.28 * TERA, int(0.2 * GB)))
    decode = dict.fromkeys((True, False), Forward(2 * TERA, int(1.33 * GB)))
    encode, score = Forward(64 * 4.85 * TERA, int(7.6 * GB)), Forward(0.35 * TERA, GB)
    counts = Counts(call, velocity, decode, decode[True], encode, score)
    base, encoders = 11_901_408_320, 4_762_310_656 + 123_060_480
    train = patch.pop("train", {})
    adapters = 261_000_000 if train.get("tune") == "lora" else 0
    sizes = Sizes(
        base + adapters,
        adapters or base,
        339_000_000,
        339_000_000,
        54_000_000,
        pinned=0,
        vae=84_000_000,
        reward=986_109_441,
        encoders=encoders,
        matrices=0,
        in_four_bits=0,
        largest_matrix=0,
    )
    train = {**train, "compute": {"gather_rollout": False, **train.get("compute", {})}}
    return Plan(Case(settings("flux1_dev", train=train, **patch), cluster(gpus, memory), sizes, counts))


@pytest.mark.parametrize(("gpus", "full", "half"), [(8, 1291, 2.3), (32, 1430, 2.5)])
def test_traffic_is_29_gathers_and_2_scatters(gpus, full, half):
    plain = flux_plan(
        gpus, train={"batch_size": gpus, "compute": {"autocast": False}, "lora": {"frozen": "float32"}}
    )
    assert plain.traffic / GB == pytest.approx(full, rel=0.01)
    assert flux_plan(gpus, train={"batch_size": gpus}).traffic_seconds == pytest.approx(half, rel=0.03)
    kept = flux_plan(gpus, train={"batch_size": gpus, "compute": {"gather_rollout": True}})
    assert kept.traffic_seconds == pytest.approx(0.65, abs=0.06), "as with a copy for rollouts"


def on_nodes(plan, **changes):
    """Return the plan on a cluster with other connections."""
    return Plan(replace(plan.case, cluster=replace(plan.cluster, **changes)))


def test_a_model_sharded_across_nodes_is_as_slow_as_the_connection_between_them():
    plan = flux_plan(32, train={"batch_size": 32})
    assert on_nodes(plan, node_bandwidth=400 * GB).traffic_seconds == plan.traffic_seconds, (
        "faster than inside"
    )
    slow = on_nodes(plan, node_bandwidth=12.5 * GB)
    assert slow.traffic_seconds == pytest.approx(24 * plan.traffic_seconds)
    assert on_nodes(slow, node_gpus=32).traffic_seconds == plan.traffic_seconds, "one node"
    assert slow.generated == plan.generated, "select and evaluate shard nothing"
    assert slow.hours_of("train") > plan.hours_of("train")


def test_groups_of_a_node_send_only_the_sums_of_gradients_over_the_slow_connection():
    grouped = on_nodes(
        flux_plan(32, train={"batch_size": 32}, resources={"shard_group": 8}), node_bandwidth=12.5 * GB
    )
    sums = traffic_across_copies(grouped.case)
    # eight devices of a node send their sums at the same time
    assert grouped.traffic_seconds == pytest.approx(
        (grouped.traffic - sums) / (300 * GB) + sums / (12.5 * GB / 8)
    )
    whole = on_nodes(flux_plan(32, train={"batch_size": 32}), node_bandwidth=12.5 * GB)
    assert grouped.traffic_seconds < whole.traffic_seconds / 2
    copies = on_nodes(
        flux_plan(32, train={"batch_size": 32}, resources={"shard": False}), node_bandwidth=12.5 * GB
    )
    assert copies.traffic_seconds == pytest.approx(copies.traffic / (12.5 * GB)), "one ring through each node"


def test_weights_that_stay_gathered_in_a_rollout_cost_their_memory_if_that_is_the_peak():
    each, kept = (
        flux_plan(32, train={"batch_size": 32, "compute": {"gather_rollout": gather}})
        for gather in (False, True)
    )
    whole = 2 * kept.case.sizes.all
    assert kept.memory["gathered weights"] == whole
    assert each.memory["gathered weights"] < 0.01 * whole
    assert kept.memory["passing tensors"] == pytest.approx(0.9 * GB), "decoder and reward come later"
    assert kept.step_peak - each.step_peak == pytest.approx(whole + 0.9 * GB - (12.8 * GB + 2 * 54e6))
    unsharded = flux_plan(8, train={"compute": {"gather_rollout": True}}, resources={"shard": False})
    assert unsharded.memory["gathered weights"] == 0


def test_groups_of_workers_gather_within_the_group_and_sum_gradients_across_groups():
    one, grouped = (
        flux_plan(32, train={"batch_size": 32}, resources={"shard_group": group}) for group in (NULL, 8)
    )
    whole = 11_901_408_320
    assert traffic_across_copies(one.case) == 0
    assert grouped.state == pytest.approx(4 * one.state)
    # 29 gathers of 2 bytes and 2 scatters of 4 within eight; two sums of an eighth over four copies, there and back
    across = traffic_across_copies(grouped.case)
    assert across == pytest.approx(2 * 2 * 3 / 4 * 4 * whole / 8)
    assert grouped.traffic - across == pytest.approx(7 / 8 * (29 * 2 + 2 * 4) * whole)


@pytest.mark.parametrize(("gpus", "gigabytes"), [(8, 23.8), (32, 6.0)])
def test_the_state_is_16_bytes_per_parameter_divided_by_the_devices(gpus, gigabytes):
    assert flux_plan(gpus).state / GB == pytest.approx(gigabytes, rel=0.01)


@pytest.mark.parametrize(("name", "saved"), [
    ("train.pairs_per_rollout=2", 0.37), ("train.pairs_per_rollout=4", 0.55), ("train.pairs_per_rollout=8", 0.65),
    ("train.rollout.source=offline", 0.74), ("train.rollout.source=cached", 0.74),
])  # fmt: skip
def test_savings_of_shared_rollouts_and_real_images_match_the_cost_model(name, saved):
    plan = flux_plan(train={"batch_size": 8, "tune": "lora"})  # with LoRA, so no variant needs a new count
    assert 1 - per_pair(alternatives(plan)[name]) / per_pair(plan) == pytest.approx(saved, abs=0.01)


def test_the_peak_of_a_reference_step_matches_the_cost_model():
    """42.9 GB on 8 devices and 25.1 on 32: decoder activations are kept, and the peak is in the decoder."""
    for gpus, gigabytes in ((8, 42.9), (32, 25.1)):
        plan = flux_plan(gpus, train={"batch_size": gpus})
        assert without_early_stop(plan) / GB == pytest.approx(gigabytes, rel=0.10)


def test_run_time_and_cost_are_computed_from_the_step_time():
    plan = flux_plan(train={"batch_size": 8})
    step = plan.compute_seconds + plan.traffic_seconds
    assert plan.hours == pytest.approx(19 * step / 3600)
    assert plan.run_hours == pytest.approx(sum(spent.seconds for spent in plan.spending) / 3600)
    assert plan.device_hours == pytest.approx(8 * plan.run_hours)
    assert plan.cost == pytest.approx(2.5 * plan.device_hours)


def test_images_generated_by_later_stages_are_counted_for_every_model_and_format():
    plan = flux_plan(8)
    formats = len(plan.settings.quantize.formats)
    images = {stage: generated.num_images for stage, generated in plan.generated.items()}
    # select: base and checkpoints 5, 10, 15, 19; evaluate: base and aligned; quantize: the formats
    assert images == {"select": 5 * 100 * 2, "evaluate": 2 * 200 * 4, "quantize": 16 * formats}
    of_an_image = 50 / 25 * plan.flops["rollout"] / plan.case.images + 2 * TERA  # with the decoder
    with_champion = flux_plan(8, champion="flux1-dev-0123456789ab").generated["evaluate"]
    assert with_champion.num_images == 3 * 200 * 4
    evaluate, quantize = plan.generated["evaluate"], plan.generated["quantize"]
    assert (evaluate.devices, quantize.devices) == (8, 1)
    assert evaluate.hours == pytest.approx(200 * of_an_image / (0.4 * 989 * TERA) / 3600)
    assert flux_plan(8, generate={"autocast": False}).generated["evaluate"].hours == pytest.approx(
        15 * evaluate.hours
    )


@pytest.mark.pipeline
@pytest.mark.parametrize(("profile", "gpus"), [("flux1_dev", 32), ("flux1_dev_lora", 8)])
def test_the_evaluations_of_early_stop_cost_at_most_a_tenth_of_training(profile, gpus):
    plan = counted_plan(settings(profile), cluster(gpus))
    checkpoints, base = plan.watched["at the checkpoints"], plan.watched["of the base, once"]
    assert (checkpoints.num_images, base.num_images) == (4 * 16 * 2, 16 * 8)
    assert 0.05 * plan.hours < checkpoints.hours < 0.1 * plan.hours
    assert base.hours < 0.1 * plan.hours


def test_the_images_of_early_stop_are_part_of_the_cost():
    plan = flux_plan(train={"batch_size": 8})
    without = flux_plan(train={"batch_size": 8, "early_stop": NULL})
    watched = sum(images.hours for images in plan.watched.values())
    early = sum(spent.seconds for spent in plan.spending if spent.what == "early stop") / 3600
    scored = 2 * (4 * 16 * 2 + 16 * 8) * 0.35 * TERA  # by reward and judge, in float32 on every device
    assert without.watched == {}
    assert early == pytest.approx(watched + 15 * scored / (0.4 * 989 * TERA) / 3600)
    encoded = 16 * 4.85 * TERA * 15 / (0.4 * 989 * TERA) / 3600  # the prompts of early stop
    assert plan.run_hours == pytest.approx(without.run_hours + early + encoded)
    # 16 prompts on 8 devices: per evaluation 2 prompts of 2 images, in batches of one image
    calls, gathers = 4 * 2 * 2 * 15, 4 * 4 * 15
    per_image = plan.flops["rollout"] / plan.case.images / 25 / (0.4 * 989 * TERA)
    decoded = 4 * 4 * 2 * TERA / (0.4 * 989 * TERA)
    gather = 7 / 8 * 2 * plan.case.sizes.all / plan.cluster.bandwidth
    assert plan.watched["at the checkpoints"].hours == pytest.approx(
        (calls * per_image + decoded + gathers * gather) / 3600
    )


@pytest.mark.pipeline
def test_every_stage_of_flux_has_its_peak(flux):
    """T5 in float32 has 19.05 GB, CLIP-L 0.49, the transformer in float32 47.6, each scorer 3.94."""
    print({stage: f"{peak / GB:.1f} GB" for stage, peak in flux.peaks.items()})
    assert flux.stages["embed"]["text encoders"] / GB == pytest.approx(19.05 + 0.49, rel=0.001)
    assert flux.stages["check_reward"]["scorers"] / GB == pytest.approx(3.94, rel=0.01)
    evaluate = flux.stages["evaluate"]
    assert evaluate["parameters"] / GB == pytest.approx(23.8, rel=0.01), "matrices in bfloat16"
    assert flux.stages["quantize"]["parameters"] / GB == pytest.approx(47.6, rel=0.01)
    assert evaluate["scorers"] / GB == pytest.approx(3 * 3.94, rel=0.01)
    assert flux.stages["select"]["scorers"] / GB == pytest.approx(2 * 3.94, rel=0.01)
    of_one = evaluate["passing tensors"] / flux.settings.generate.batch_size
    assert flux.stages["train: early stop"]["passing tensors"] == pytest.approx(of_one, rel=0.05)
    assert flux.peak == max(flux.peaks.values()) == flux.peaks["quantize"]
    assert flux.fits


def test_the_time_of_a_run_is_that_of_every_kind_of_work_of_every_stage():
    plan = flux_plan(8, train={"batch_size": 8})
    found = {(spent.stage, spent.what): spent.seconds for spent in plan.spending}
    assert len(found) == len(plan.spending) - 1, "early stop has two lines, all others differ"
    rate = 0.4 * 989 * TERA
    whole = plan.case.sizes.all
    expected = {
        ("embed", "loading"): 2 * plan.case.sizes.encoders / (2 * GB),
        ("embed", "encoding"): 15 * (19 * 8 + 100 + 200 + 16) * 4.85 * TERA / rate,
        ("train", "training"): 3600 * plan.hours,
        ("train", "export"): 4 * (4 + 4) * whole / (2 * GB),
        ("train", "hashing"): 4 * (4 + 4) * whole / (1.8 * GB),
        ("quantize", "proofs"): 15 * 9 * 8 * 37.28 * TERA / rate,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    upload, stored = found["publish", "upload"], found["publish", "hashing"]
    assert upload / stored == pytest.approx(2 * 1.8 / 0.1), "written and read back"
    assert ("train", "checkpoints") not in found, "asynchronous ones cost no time"
    blocking = flux_plan(8, train={"batch_size": 8}, resources={"async_checkpoints": False})
    assert ("train", "checkpoints") in {(spent.stage, spent.what) for spent in blocking.spending}


LORA = {"tune": "lora"}


@pytest.mark.parametrize(
    ("train", "workers", "stage", "bases", "decoders", "checkpoints"),
    [
        # three rounds of the base and four checkpoints: in the stage's process only adapters are exchanged
        (LORA, 1, "select", 1, 1, 12),
        (LORA, 8, "select", 15, 15, 12),
        # three stages of two models; every second begins with the model in memory
        (LORA, 1, "evaluate", 1, 1, 2),
        (LORA, 8, "evaluate", 6, 6, 3),
        # weights are read into those in memory, and the decoder stays
        ({}, 1, "select", 3, 1, 12),
        ({}, 8, "select", 3, 15, 12),
        ({}, 1, "evaluate", 2, 1, 2),
        ({}, 8, "evaluate", 3, 6, 3),
    ],
)
def test_tasks_that_generate_load_the_base_for_each_model(
    train, workers, stage, bases, decoders, checkpoints
):
    plan = flux_plan(8, train=train, resources={"generate_workers": workers})
    scorers = {"select": 15 * 2, "evaluate": 6 * 3}[stage]
    found = next(spent for spent in plan.spending if (spent.stage, spent.what) == (stage, "loading"))
    sizes, base = plan.case.sizes, plan.case.base
    of_a_checkpoint = 4 * (sizes.trained if train else base)
    read = 2 * bases * base + 2 * decoders * sizes.vae + checkpoints * of_a_checkpoint
    assert found.seconds == pytest.approx((read + scorers * 4 * sizes.reward) / (2 * GB))
    assert ("by each of 8 tasks" in found.detail) == (workers == 8)


def test_each_file_is_hashed_once_however_often_it_is_loaded():
    plan = flux_plan(8, train=LORA, resources={"generate_workers": 8})
    hashed = [spent.seconds for spent in plan.spending if (spent.stage, spent.what) == ("select", "hashing")]
    sizes = plan.case.sizes
    once = 2 * (plan.case.base + sizes.vae) + 4 * 4 * sizes.trained + 2 * 4 * sizes.reward
    assert hashed == pytest.approx([once / (1.8 * GB)])


def test_four_images_per_device_take_four_times_the_flops():
    assert flux_plan(8).flops["rollout"] == pytest.approx(4 * flux_plan(32).flops["rollout"])


def test_micro_batches_are_counted_as_the_images_of_a_call():
    whole, split = (
        counted_plan(settings("tiny", train={"micro_batch_size": size}), cluster(3)) for size in (NULL, 2)
    )
    assert (whole.case.counts.call.num_images, split.case.counts.call.num_images) == (2 * 6, 2 * 2), (
        "two branches in a call"
    )
    assert (whole.case.micro_batches, split.case.micro_batches) == (1, 3)
    assert split.step_peak < whole.step_peak
    assert split.flops["rollout"] == pytest.approx(whole.flops["rollout"])


def test_a_sharded_model_is_gathered_again_for_each_micro_batch():
    whole, split = (flux_plan(8, train={"micro_batch_size": size}) for size in (NULL, 2))
    assert split.case.images == whole.case.images == 4
    assert split.traffic == pytest.approx(2 * whole.traffic)


@pytest.mark.pipeline
def test_a_run_that_does_not_fit_gets_the_cheapest_changes_that_make_it_fit():
    whole = settings("tiny")
    plan = counted_plan(whole, cluster(1))
    assert plan.peak == plan.step_peak
    done, better = remedies(whole, cluster(1, memory=0.7 * plan.peak / GB))
    assert better.fits
    assert better.peak < 0.7 * plan.peak
    assert done[0] == "train.batch_branches=false"
    _, hopeless = remedies(whole, cluster(1, memory=0.001))
    assert not hopeless.fits


def test_more_devices_than_images_are_refused():
    with pytest.raises(ConfigError, match=r"17 GPUs are more than train\.batch_size 16"):
        counted_plan(settings("tiny"), cluster(17))


def test_each_method_is_planned_with_its_own_cost():
    """ReFL and Direct-Align train one image per sample, SRPO two; of 16 rollout steps ReFL uses 15 and DRaFT-2 14."""
    rollout = {"num_inference_steps": 16}
    one = counted_plan(settings("tiny", train={"rollout": rollout}), cluster(1))
    for method, steps, images in (("refl", 15, 1), ("direct_align", 16, 1), ("draft_k", 14, 1)):
        other = counted_plan(settings("tiny", train={"method": method, "rollout": rollout}), cluster(1))
        assert other.case.counts.call.num_images == images * one.case.counts.call.num_images // 2
        assert other.flops["rollout"] == pytest.approx(steps / 16 * one.flops["rollout"], rel=1e-6)
        assert other.flops["decoder"] == pytest.approx(0.5 * one.flops["decoder"], rel=1e-6)
        assert "train.pairs_per_rollout=4" not in alternatives(other) or method == "direct_align"


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"tune": "lora", "lora": {"frozen": "nf4"}, "compute": {"autocast": True}},
        {"optimizer": {"kind": "adamw_8bit"}},
        {"rollout": {"source": "hybrid"}},
    ],
)
def test_a_change_that_saves_memory_leads_to_settings_that_a_run_accepts(train):
    given = settings("tiny", train=train)
    for change in REMEDIES.values():
        require_consistent(parse_settings(change(given).model_dump(), "changed"))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="unknown method 'dpo'"):
        counted_plan(settings("tiny", train={"method": "dpo"}), cluster(1))


def test_the_command_prints_every_table(monkeypatch, capsys):
    from srpo_core.__main__ import main

    words = ["srpo", "plan", "--profile", "tiny", "--gpus", "1", "--gpu-memory", "16", "--price", "2"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in (
        "optimizer",
        "Every stage fits into 16 GB: the highest peak is 0.3",
        "embed",
        "check_reward",
        "train: early stop",
        "hashing",
        "upload",
        "rollout",
        "30 steps",
        "pairs_per_rollout=4",
        "tune=lora",
    ):
        assert word in said


@pytest.mark.pipeline
def test_the_command_shows_the_changes_that_make_a_run_fit(monkeypatch, capsys):
    from srpo_core.__main__ import main

    peak = counted_plan(settings("tiny"), cluster(1)).peak / GB
    words = ["srpo", "plan", "--profile", "tiny", "--gpus", "1", "--gpu-memory", f"{0.7 * peak:.4f}"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    verdict = re.search(
        r"It does not fit into ([\d.]+) GB: train: step needs ([\d.]+) GB\. "
        r"With (train\.batch_branches=false\S*) it does: ([\d.]+) GB\.",
        said,
    )
    assert verdict, said
    room, needed, better = (float(verdict[group]) for group in (1, 2, 4))
    assert (room, needed) == (pytest.approx(0.7 * peak, rel=0.01), pytest.approx(peak, rel=0.01))
    assert better <= room


def test_the_full_and_lora_presets_differ_only_in_tuning_learning_rate_and_micro_batches():
    full, lora = (load_settings(ROOT / f"profiles/{name}.yaml") for name in ("flux1_dev", "flux1_dev_lora"))
    optimizer = full.train.optimizer.model_copy(update={"learning_rate": lora.train.optimizer.learning_rate})
    update = {"tune": "lora", "optimizer": optimizer, "micro_batch_size": 1}
    assert full.train.model_copy(update=update) == lora.train
    assert (full.model, full.rewards, full.control_words) == (lora.model, lora.rewards, lora.control_words)


def test_flux1_dev_has_the_published_settings():
    from srpo_core.algorithm.schedule import training_grid

    whole = load_settings(ROOT / "profiles/flux1_dev.yaml")
    train, align = whole.train, whole.train.direct_align
    optimizer = train.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.max_grad_norm) == (5e-6, 1e-4, 0.1)
    assert (whole.model.height, whole.model.width) == (720, 720)
    assert (train.steps, train.batch_size, train.rollout.num_inference_steps, train.rollout.shift) == (
        19,
        32,
        25,
        3.0,
    )
    assert (align.ratio, align.discount_denoise, align.discount_inversion) == (0.9, (0.1, 0.25), (0.3, 0.01))
    grid = training_grid(align.schedule_steps, train.rollout.shift, align.first, align.last, align.grid)
    assert (float(grid[0]), float(grid[-1])) == (
        pytest.approx(0.964, abs=5e-4),
        pytest.approx(0.75, abs=5e-4),
    )


@pytest.mark.pipeline  # counts the tiny model once more
def test_settings_that_cannot_change_a_count_are_not_counted_again(monkeypatch):
    """Nor is another batch of prompts, which needs the text encoders alone."""
    one = counted_plan(settings("tiny"), cluster(1)).case.counts
    compute = {"gather_rollout": True, "attention": "_native_math", "tf32": True, "fused_optimizer": True}
    other = settings("tiny", train={"compute": compute, "lora": {"alpha": 7.0}})
    again = Counter().plan(other, cluster(1)).case.counts
    assert again.score.flops == one.score.flops
    # the first call of a process also makes what the preprocessing keeps
    assert replace(again, score=one.score) == one
    # from here on nothing is built but text encoders
    monkeypatch.setattr("srpo_core.plan.making.meta_parts", None)
    assert counted_plan(other, cluster(1)).case.counts == one
    prompts = settings("tiny").resources.encode_batch_size
    fewer = counted_plan(settings("tiny", resources={"encode_batch_size": 2}), cluster(1)).case.counts
    assert one.encode.flops == pytest.approx(prompts / 2 * fewer.encode.flops)
    assert replace(fewer, encode=one.encode) == one
    with pytest.raises(TypeError, match="NoneType"):
        counted_plan(settings("tiny", generate={"decode": "tiles"}), cluster(1))
