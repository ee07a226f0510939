import json
from dataclasses import replace

import torch

from srpo_core.checkpoint import WEIGHTS, newest_checkpoint, read_whole
from srpo_core.location import Location
from srpo_core.trainer import PROGRESS, SAMPLES, Worker

CPU = torch.device("cpu")


def worker(job, rank=0, world=1):
    return Worker(job, rank=rank, world=world, device=CPU)


def shorter(job, steps):
    return replace(job, train=job.train.model_copy(update={"steps": steps}))


def weights(checkpoint):
    whole = read_whole(checkpoint.location.path / WEIGHTS)
    return {name: tensor.numpy().tobytes() for name, tensor in whole.items()}


def test_a_resumed_run_ends_on_the_same_bits_and_trains_only_what_was_missing(job, tmp_path):
    worker(job).run()
    straight = newest_checkpoint(job.state, every=2)
    other = replace(job, state=Location.of(tmp_path / "interrupted"))
    worker(shorter(other, 2)).run()
    worker(replace(other, resume=2)).run()
    resumed = newest_checkpoint(other.state, every=2)
    assert resumed.step == straight.step == 4
    assert weights(resumed) == weights(straight)
    assert resumed.metrics == straight.metrics
    trained = [json.loads(line)["step"] for line in (other.state / PROGRESS).read_text().splitlines()]
    assert trained == [1, 2, 3, 4]


def test_a_finished_run_leaves_checkpoints_samples_and_metrics_of_every_step(job):
    worker(job).run()
    assert sorted(path.name for path in job.state.path.glob("step-*")) == ["step-000002", "step-000004"]
    assert len(list((job.state.path / SAMPLES).glob("*.png"))) == 2
    metrics = newest_checkpoint(job.state, every=2).metrics
    assert [set(row) for row in metrics] == [{"loss", "reward_denoise", "reward_inversion", "grad_norm"}] * 4


def test_the_shares_of_two_workers_make_up_the_batch_of_one(job):
    whole = worker(job).batch(3)
    first, second = (worker(job, rank, 2).batch(3) for rank in range(2))
    for rank, share in enumerate((first, second)):
        assert share.prompts == whole.prompts[rank::2]
        midpoints = [b.draws.integers(("midpoint", 0), 5, 995) for b in (share, whole)]
        assert midpoints[0] == midpoints[1][rank::2]
        assert torch.equal(share.noise, whole.noise[rank::2])
        assert torch.equal(share.condition.pooled, whole.condition.pooled[rank::2])


def test_a_step_moves_every_part_of_the_transformer(job):
    trained = worker(job)
    before = {name: tensor.clone() for name, tensor in trained.model.transformer.state_dict().items()}
    trained.step(1)
    after = trained.model.transformer.state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


def with_train(job, **changes):
    return replace(job, train=job.train.model_copy(update=changes))


def test_shared_noise_is_the_same_for_all_samples_of_a_step_and_another_in_the_next(job):
    shared = worker(with_train(job, noise="shared"))
    noise, following = shared.batch(1).noise, shared.batch(2).noise
    assert all(torch.equal(noise[0], other) for other in noise)
    assert not torch.equal(noise[0], following[0])
    own = worker(job).batch(1).noise
    assert not any(torch.equal(own[0], other) for other in own[1:])


def test_hybrid_mixes_real_pictures_by_sample_whatever_the_number_of_workers(job):
    hybrid = job.train.rollout.model_copy(update={"source": "hybrid", "share_offline": 0.5})
    mixed = with_train(job, rollout=hybrid, batch_size=40)
    latents = torch.arange(5.0)[:, None, None].expand(5, 16, 64)
    workers = [worker(job), worker(job, 0, 2), worker(job, 1, 2)]
    for one in workers:
        one.job, one.prompts = mixed, one.prompts.__class__(one.prompts.texts, one.prompts.condition, latents)
    whole, *parts = [one.batch(1) for one in workers]
    assert 10 < len(whole.real) < 30
    for rank, part in enumerate(parts):
        assert {2 * place + rank for place in part.real} == {p for p in whole.real if p % 2 == rank}
    for place, image in whole.real.items():
        assert workers[0].prompts.texts[int(image[0, 0])] == whole.prompts[place]
