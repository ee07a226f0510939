"""Training on several ranks, replicated or sharded by FSDP2, compared with training on one rank."""

import json
import shutil
from dataclasses import replace

import pytest
import ranks
import torch

from srpo_core.artifacts import step_name
from srpo_core.config import EmaSettings
from srpo_core.training.checkpoint import newest_checkpoint
from srpo_core.training.job import PROGRESS, SAMPLES
from srpo_core.training.steps import checkpoint_steps
from srpo_core.weights.shards import read_whole

NUM_STEPS = 20


AVERAGED = EmaSettings(decay=0.5, start=0)


def weights(job):
    """Return the trained weights, and their averages if there are any."""
    directory = newest_checkpoint(job.state, checkpoint_steps(job.train)).location.path
    found = read_whole(directory / "weights")
    if job.train.ema:
        averages = read_whole(directory / "ema")
        assert averages.keys() == found.keys()
        found |= {f"average of {name}": tensor for name, tensor in averages.items()}
    return found


def largest_difference(one, other):
    """Return the largest relative difference of a tensor: norm of the difference over norm."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


def train_in_float64(
    job, tmp_path, *, num_steps, tune, shard=None, batch_size=4, inspect=ranks.shards_held, **settings
):
    """Train on one rank, or on two if `shard` is given; return (metrics of each rank, what the first found, weights).

    In float64 a difference comes from the computation and not from the order in which it is rounded. In float32 the
    first step agrees within 1e-6; then the clamp of pixels and AdamW's division by small moments increase rounding
    errors (docs/training.md has the figures).
    """
    num_ranks = 1 if shard is None else 2
    small = in_small(
        job,
        tmp_path,
        f"{tune}-{shard}",
        num_ranks,
        {"shard": bool(shard)},
        **{
            "steps": num_steps,
            "batch_size": batch_size,
            "checkpoint_every": num_steps,
            "tune": tune,
            **settings,
        },
    )
    found = ranks.train(small, num_ranks, inspect=inspect, double=True)
    return [metrics for _, metrics in found], found[0][0], weights(small)


def in_small(job, tmp_path, name, num_ranks, resources, **settings):
    """Return a job of short rollouts on some ranks, with its own state directory."""
    return ranks.changed(
        job,
        tmp_path,
        name,
        resources={**resources, "train_workers": num_ranks},
        sample_prompts=1,
        ema=AVERAGED,
        buckets=[(64, 64), (32, 64), (64, 32)],  # the first two steps draw the first and the last
        rollout=job.train.rollout.model_copy(update={"num_inference_steps": 1}),
        **settings,
    )


def assert_same_training(alone, together, *, shard):
    """Require that two ranks learned the same as one, and that each had half of the model or all of it."""
    ((metrics,), _, expected), ((on_first, on_second), (held, total), found) = alone, together
    assert on_first == on_second
    for one, two in zip(metrics, on_first, strict=True):
        assert two == pytest.approx(one, rel=1e-5)
    assert held < 0.51 * total if shard else held == total
    difference = largest_difference(expected, found)
    print(
        f"{'sharded' if shard else 'replicated'}, largest relative difference of a tensor: {difference:.2e}"
    )
    assert difference < 1e-5


def samples(job, step):
    """Return the row of sample images of a checkpoint, in 8 bits."""
    import numpy
    from PIL import Image

    return numpy.asarray(Image.open(job.state.path / SAMPLES / f"{step_name(step)}.png")).astype(int)


# by name: number of ranks, resources, micro_batch_size, and what the ranks look at before they train. The shares of
# five images differ, so with micro-batches of one image some ranks repeat an image. The sharded workers are two of the
# three that a group needs, as after an elastic start
WAYS = {
    "replicated": (2, {"shard": False}, 2, ranks.shards_held),
    "sharded": (2, {"shard": True, "shard_group": 3}, 1, ranks.generated_gathered_or_not),
    "resumed in groups": (4, {"shard": True, "shard_group": 2}, 2, ranks.shards_held),
    "resumed alone": (1, {}, 3, ranks.shards_held),
}


@pytest.mark.pipeline
def test_neither_workers_nor_shards_nor_micro_batches_change_what_is_learned(job, tmp_path):
    """Replicated, this fails if gradients are not summed over the ranks; sharded, if FSDP2 averages them.

    Four ranks in groups, and then one rank, resume from the first checkpoint of two sharded ones, with micro-batches of
    other sizes.
    """
    short = {"steps": 2, "checkpoint_every": 1, "batch_size": 5, "tune": "full"}

    def run(name, num_ranks, resources, micro, inspect=None, *, after=None):
        own = in_small(job, tmp_path, name, num_ranks, resources, micro_batch_size=micro, **short)
        own = replace(own, train=own.train.model_copy(update={"sample_prompts": 3}))
        if after is not None:
            shutil.copytree(after.state.path / step_name(1), own.state.path / step_name(1))
            own = replace(own, resume=1)
        return own, ranks.train(own, num_ranks, inspect=inspect, double=True)

    alone, ((_, expected),) = run("alone", 1, {}, None)
    jobs, held = {}, {}
    for name, (num_ranks, resources, micro, inspect) in WAYS.items():
        after = jobs["sharded"] if "resumed" in name else None
        jobs[name], found = run(name, num_ranks, resources, micro, inspect, after=after)
        held[name] = [looked for looked, _ in found]
        for _, metrics in found:
            assert metrics == found[0][1]
            for one, other in zip(expected, metrics, strict=True):
                assert other == pytest.approx(one, rel=1e-9), name
        assert largest_difference(weights(alone), weights(jobs[name])) < 1e-9, name
        assert abs(samples(jobs[name], 2) - samples(alone, 2)).max() <= 1, "the same images in the same order"
    assert {name: notes(one) for name, one in jobs.items()} == {
        name: ["2 workers"] if name == "sharded" else [] for name in WAYS
    }
    assert all(here == total for here, total in held["replicated"])
    assert all(here < 0.51 * total for here, total in held["resumed in groups"])
    for looked in held["sharded"]:
        assert_gathered_once_for_the_same_latents(looked)


def notes(job):
    """Return the first two words of each note that the workers have left."""
    rows = [json.loads(line) for line in (job.state / PROGRESS).read_text().splitlines()]
    return [" ".join(row["note"].split()[:2]) for row in rows if "note" in row]


def assert_gathered_once_for_the_same_latents(looked, steps=3):
    """Require what `ranks.generated_gathered_or_not` has to find: a gather of each part, instead of one per step."""
    (here, total), parts, found = looked
    assert here < 0.51 * total
    (gathers, latents, left), (gathers_once, latents_once, left_once) = found[False], found[True]
    assert gathers == (steps * parts, steps * parts)
    assert gathers_once == (parts, parts)
    assert latents == latents_once, "to the last bit"
    assert left == left_once == []


@pytest.mark.distributed
@pytest.mark.parametrize(("tune", "shard"), [("full", True), ("lora", True), ("full", False)])
def test_two_workers_learn_what_one_learns_over_twenty_steps(job, tmp_path, tune, shard):
    alone = train_in_float64(job, tmp_path, num_steps=NUM_STEPS, tune=tune)
    together = train_in_float64(job, tmp_path, num_steps=NUM_STEPS, tune=tune, shard=shard)
    assert_same_training(alone, together, shard=shard)
    found = together[-1]
    averages = {name for name in found if name.startswith("average of ")}
    assert len(averages) == len(found) / 2
    assert all((".lora_" in name) == (tune == "lora") for name in averages)


@pytest.mark.distributed
@pytest.mark.parametrize(("tune", "kind"), [("full", "adamw"), ("lora", "adamw"), ("full", "adamw_8bit")])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_checkpoint_can_be_resumed_by_another_number_of_workers(job, tmp_path, tune, kind, before, after):
    """With moments in 8 bits the workers are replicas. Rounding may then move a moment to the next of 256 values."""
    eight, shard = kind == "adamw_8bit", {"shard": kind == "adamw"}
    optimizer = job.train.optimizer.model_copy(update={"kind": kind})
    job = replace(job, train=job.train.model_copy(update={"ema": AVERAGED, "optimizer": optimizer}))
    straight = ranks.changed(job, tmp_path, "straight", steps=4, tune=tune, resources=shard)
    ranks.train(straight, before)
    expected = weights(straight)  # the runs below write the last checkpoint anew
    halfway = replace(straight, resume=2)
    saved = ranks.train(halfway, before, inspect=ranks.whole_state)[0][0]
    for found, _ in ranks.train(halfway, after, inspect=ranks.whole_state):
        assert found == saved, "bit for bit, however it is sharded"
    if eight:
        assert any(name.endswith(":state1") for name in saved), "the moments in 8 bits"
    other = ranks.changed(job, tmp_path, "other", steps=4, tune=tune, resources=shard)
    ranks.train(replace(other, train=other.train.model_copy(update={"steps": 2})), before)
    ranks.train(replace(other, resume=2), after)
    apart = largest_difference(expected, weights(other))
    print(f"{tune}, {kind}, {before} workers and then {after}: {apart:.1e}")
    assert apart < (1e-4 if eight else 1e-5)


@pytest.mark.distributed
def test_background_and_foreground_writes_save_the_same_weights(job, tmp_path):
    for name, background in (("front", False), ("back", True)):
        sharded = ranks.changed(
            job, tmp_path, name, resources={"shard": True, "async_checkpoints": background}, steps=4
        )
        ranks.train(sharded, 2)
    for step in ("step-000002", "step-000004"):
        front, back = (read_whole(tmp_path / name / step / "weights") for name in ("front", "back"))
        assert all(torch.equal(front[name], back[name]) for name in front)


@pytest.mark.distributed
def test_every_parameter_is_still_sharded_after_generating_images(job, tmp_path):
    """An unsharded parameter would be saved rounded, and its optimizer state would not be found."""
    sharded = ranks.changed(job, tmp_path, "sharded", resources={"shard": True}, steps=0)
    for left, _ in ranks.train(sharded, 2, inspect=ranks.left_whole_after_generating):
        assert left == []


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("tune", "frozen", "gather_rollout"),
    [("full", "float32", False), ("full", "float32", True), ("lora", "bfloat16", True)],
)
def test_two_ranks_with_the_options_of_flux1_dev_are_close_to_one_rank(
    job, tmp_path, tune, frozen, gather_rollout
):
    """Gathered in bfloat16 under autocast, with checkpointed blocks and decoder, and background writes."""
    compute = {"autocast": True, "checkpoint_blocks": 1.0, "checkpoint_decode": True}
    settings = {
        "steps": 2,
        "tune": tune,
        "lora": job.train.lora.model_copy(update={"frozen": frozen}),
        "compute": job.train.compute.model_copy(update={**compute, "gather_rollout": gather_rollout}),
    }
    alone = ranks.changed(job, tmp_path, "alone", **settings)
    sharded = ranks.changed(
        job,
        tmp_path,
        "sharded",
        resources={"shard": True, "train_workers": 2, "async_checkpoints": True},
        **settings,
    )
    ((_, metrics),) = ranks.train(alone, 1)
    (seen, on_first), _ = ranks.train(sharded, 2, inspect=ranks.dtypes_held_gathered_and_reduced)
    held = sorted({"float32", frozen})
    assert seen == {"held": held, "gathered": ["bfloat16"], "reduced": ["float32"]}
    for name in ("loss", "reward_denoise", "reward_inversion"):
        assert on_first[0][name] == pytest.approx(metrics[0][name], abs=0.03), name
    assert on_first[0]["grad_norm"] == pytest.approx(metrics[0]["grad_norm"], rel=0.1)
    assert {tensor.dtype for tensor in weights(sharded).values()} == {torch.float32}


@pytest.mark.distributed
@pytest.mark.parametrize(("tune", "frozen"), [("full", "float32"), ("lora", "bfloat16")])
def test_a_sharded_model_under_autocast_generates_its_samples(job, tmp_path, tune, frozen):
    sharded = ranks.changed(
        job,
        tmp_path,
        "sharded",
        resources={"shard": True},
        steps=0,
        tune=tune,
        lora=job.train.lora.model_copy(update={"frozen": frozen}),
        compute=job.train.compute.model_copy(update={"autocast": True}),
    )
    ((left, _),) = ranks.train(sharded, 1, inspect=ranks.left_whole_after_generating)
    assert left == []


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("tune", "options"), [("full", {}), ("lora", {}), ("lora", {"autocast": True, "checkpoint_blocks": 0.5})]
)
def test_compiled_blocks_compute_on_two_ranks_what_they_compute_uncompiled(job, tmp_path, tune, options):
    """The graphs run without a C++ compiler, which would need an hour; test_compute.py compiles with one.

    Under autocast the graphs round where the uncompiled operations do, so the first steps are as close as in float32.
    """
    settings = {
        "steps": 4,
        "checkpoint_every": 4,
        "batch_size": 2,
        "sample_prompts": 1,
        "tune": tune,
        "buckets": [(64, 64), (32, 64)],
        "rollout": job.train.rollout.model_copy(update={"num_inference_steps": 2}),
    }
    found = {}
    for compiled in (False, True):
        compute = job.train.compute.model_copy(update={"compile": compiled, **options})
        own = ranks.changed(
            job, tmp_path, f"compiled-{compiled}", resources={"shard": True}, compute=compute, **settings
        )
        before = ranks.compiling_quickly if compiled else None
        found[compiled] = ranks.train(own, 2, inspect=ranks.graphs_compiled, before=before), weights(own)
        assert notes(own) == []
    (plain, expected), (compiled, trained) = found[False], found[True]
    assert [metrics for _, metrics in compiled] == [
        [pytest.approx(step, rel=1e-5) for step in metrics] for _, metrics in plain
    ]
    print(f"largest relative difference of a tensor: {largest_difference(expected, trained):.1e}")
    assert largest_difference(expected, trained) < 1e-5
    for graphs, _ in compiled:
        assert 6 < graphs[-1][0] <= 24, "of blocks and decoder, for two sizes, with and without gradients"
        assert graphs[-1] == graphs[-2], "the later steps compile nothing"
        assert graphs[-1][1] == 0
