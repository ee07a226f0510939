"""A step in micro-batches changes the weights as a step on the whole share does."""

from dataclasses import replace

import pytest
import torch

from srpo_core.algorithm import method_of
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.micro_batches import images_per_call, micro_batches, num_micro_batches
from srpo_core.training.worker import Worker

NUM_IMAGES = 5


@pytest.fixture
def dtype():
    """In float64 a difference does not come from the order of rounding."""
    return torch.float64


@pytest.fixture
def worker(job, dtype, monkeypatch):
    """A worker on the tiny family that computes in `dtype`."""
    if dtype == torch.float64:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    train = job.train.model_copy(update={"batch_size": NUM_IMAGES})
    loaded = Worker(replace(job, train=train), rank=0, world=1, device=torch.device("cpu"))
    for module in (loaded.model.transformer, loaded.model.vae, loaded.learner.reward):
        module.to(dtype)
    return loaded


def whole_batch(worker, dtype, real=()):
    """Return the first step's batch in a data type; the samples `real` start from a real image."""
    batch = worker.batch(1)
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(NUM_IMAGES, *worker.model.latent_shape, generator=generator).to(dtype)
    return replace(
        batch,
        condition=batch.condition.to(dtype),
        noise=batch.noise.to(dtype),
        given={place: images[place] for place in real},
    )


@pytest.mark.parametrize(("batch_size", "world", "micro"), [
    (32, 8, None), (32, 8, 4), (32, 3, 4), (32, 3, 1), (5, 2, 1), (5, 2, 2), (7, 7, 1), (9, 4, 3), (11, 4, 2),
])  # fmt: skip
def test_every_rank_makes_equally_many_calls_and_counts_each_sample_once(job, batch_size, world, micro):
    train = job.train.model_copy(update={"batch_size": batch_size, "micro_batch_size": micro})
    count, counted, sizes = num_micro_batches(train, world), [], []
    for rank in range(world):
        samples = range(rank, batch_size, world)
        parts = list(micro_batches(Share(samples), count))
        assert len(parts) == count
        kept = [sample for part, weight in parts if weight for sample in part.prompts]
        assert kept == list(samples), "in order"
        assert {weight for _, weight in parts} <= {0.0, 1.0}
        sizes += [len(part.prompts) for part, _ in parts]
        counted += kept
    assert sorted(counted) == list(range(batch_size))
    assert min(sizes) >= 1, "a sharded model is called in each"
    assert max(sizes) == images_per_call(train, world) <= (micro or batch_size)


class Share:
    """The samples of a share, by their global indices."""

    def __init__(self, prompts):
        self.prompts = prompts

    def part(self, start, stop):
        return Share(self.prompts[start:stop])


def test_a_part_of_a_batch_keeps_the_draws_and_the_real_images_of_its_samples(worker, dtype):
    whole = whole_batch(worker, dtype, real=(1, 3))
    part = whole.part(2, 5)
    assert part.prompts == whole.prompts[2:5]
    assert torch.equal(part.noise, whole.noise[2:5])
    assert part.draws.integers(("midpoint", 0), 5, 995) == whole.draws.integers(("midpoint", 0), 5, 995)[2:5]
    assert list(part.given) == [1]
    assert torch.equal(part.given[1], whole.given[3])
    for name, tensor in whole.condition.tensors.items():
        assert torch.equal(part.condition.tensors[name], tensor[2:5])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_step_in_micro_batches_changes_the_weights_as_a_whole_step(worker, dtype, tolerance):
    """AdamW and clipping see the summed gradient once, and the model never gets more images than allowed."""
    state = {name: tensor.clone() for name, tensor in worker.model.transformer.state_dict().items()}
    batch, results, calls = whole_batch(worker, dtype), [], []
    handle = worker.model.vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    for micro in (None, 2):
        worker.model.transformer.load_state_dict(state)
        train = worker.job.train.model_copy(update={"micro_batch_size": micro, "batch_branches": False})
        optimizer = adamw(worker.model.transformer, train)
        learner = Learner(worker.model, worker.learner.reward, optimizer, train, method_of(train))
        metrics = learner.step(batch, 1)
        results.append(
            (metrics, {name: t.clone() for name, t in worker.model.transformer.state_dict().items()})
        )
    handle.remove()
    assert calls == [5, 5] + [1, 1] + [2, 2] * 2
    (one, whole), (two, split) = results
    assert two == pytest.approx(one, rel=tolerance)
    for name, tensor in whole.items():
        assert not torch.equal(tensor, state[name])
        assert tensor.dtype == dtype
        assert float((split[name] - tensor).norm()) <= tolerance * float(tensor.norm()), name
