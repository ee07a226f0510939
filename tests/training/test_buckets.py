"""Training on images of several sizes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srpo_core.config import TrainSettings, parse_settings, patched, read_values
from srpo_core.plan import GB, TERA, Cluster, make_plan
from srpo_core.training.batch import image_size
from srpo_core.training.worker import Worker

TINY = Path(__file__).resolve().parents[2] / "profiles/tiny.yaml"
BUCKETS = [(64, 32), (32, 80), (64, 64)]


def worker(job, *, rank=0, world=1, **changes):
    trained = replace(job, train=job.train.model_copy(update={"batch_size": 2, **changes}))
    return Worker(trained, rank=rank, world=world, device=torch.device("cpu"))


def test_every_bucket_is_drawn_about_equally_often_and_independently_of_the_number_of_steps(job):
    train = job.train.model_copy(update={"buckets": BUCKETS})
    drawn = [image_size(train, 0, step) for step in range(1, 301)]
    assert all(75 < drawn.count(size) < 125 for size in BUCKETS)
    assert drawn != [image_size(train, 1, step) for step in range(1, 301)]
    assert image_size(job.train, 0, 1) is None


def test_a_bucket_of_the_models_size_changes_no_bit(job):
    plain, one_bucket = worker(job), worker(job, buckets=[(64, 64)])
    assert plain.step(1) == one_bucket.step(1)
    pairs = zip(plain.model.transformer.parameters(), one_bucket.model.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_each_step_trains_on_images_of_its_bucket(job, monkeypatch):
    trained = worker(job, buckets=BUCKETS)
    seen = []
    decode = trained.model.decode
    monkeypatch.setattr(trained.model, "decode", lambda latents: seen.append(decode(latents)) or seen[-1])
    sizes = [image_size(trained.job.train, trained.job.seed, step) for step in (1, 2, 3)]
    assert len(set(sizes)) > 1
    for step, size in zip((1, 2, 3), sizes, strict=True):
        seen.clear()
        before = [p.detach().clone() for p in trained.model.transformer.parameters()]
        assert all(math.isfinite(value) for value in trained.step(step).values())
        assert {tuple(images.shape[-2:]) for images in seen} == {size}
        after = trained.model.transformer.parameters()
        assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert trained.model.latent_shape == (16, 64), "samples and evaluation have the model's size"


def test_both_ranks_have_the_same_size_at_a_step_and_the_images_of_one_rank(job):
    whole, first, second = (
        worker(job, rank=rank, world=world, buckets=BUCKETS) for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    for step in (1, 2, 3):
        height, width = image_size(whole.job.train, whole.job.seed, step)
        noise = whole.batch(step).noise
        assert noise.shape == (2, height * width // 256, 64)
        assert torch.equal(torch.cat([first.batch(step).noise, second.batch(step).noise]), noise)


@pytest.mark.parametrize("buckets", [[(64, 40)], [(0, 64)], []])
def test_sizes_that_are_no_whole_patches_are_refused(job, buckets):
    values = job.train.model_dump() | {"buckets": buckets}
    with pytest.raises(ValueError, match=r"buckets"):
        TrainSettings.model_validate(values)


def test_real_images_with_buckets_are_refused(job):
    values = job.train.model_dump()
    values |= {"buckets": BUCKETS, "rollout": values["rollout"] | {"source": "hybrid"}}
    with pytest.raises(ValueError, match=r"buckets need rollout\.source online, not hybrid"):
        TrainSettings.model_validate(values)


@pytest.mark.usefixtures("job")
def test_the_plan_counts_a_step_at_the_largest_bucket():
    def plan(**patch):
        settings = parse_settings(patched(read_values(TINY), patch), "the test")
        return make_plan(settings, Cluster(1, 16 * GB, None, 0.4, TERA, 300 * GB)).case.counts

    buckets = plan(train={"buckets": [[32, 32], [64, 128], [64, 64]]})
    largest, usual = plan(model={"height": 64, "width": 128}), plan()
    for phase in ("rollout", "transformer", "decode", "reward"):
        flops, expected, less = (getattr(one.call, phase).flops for one in (buckets, largest, usual))
        assert flops == expected > less
    # but for the rotations of the positions, which a plan without buckets has counted for generating
    assert buckets.call.peak_before == pytest.approx(largest.call.peak_before, rel=1e-3)
    assert buckets.call.peak_before > 1.5 * usual.call.peak_before
    assert (buckets.velocity, buckets.decode) == (usual.velocity, usual.decode), (
        "images to evaluate have the model's size"
    )
