"""Training that starts from pairs of noise and image: which pair a sample takes, and how they are generated anew."""

import shutil
from dataclasses import replace

import pytest
import ranks
import torch

from srpo_core.algorithm import METHODS, method_of
from srpo_core.algorithm.rollout import roll_out, starting_images
from srpo_core.config import patched
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.generation.pairs import pair_noise, write_pairs
from srpo_core.models.embeddings import read_embeddings
from srpo_core.runtime.shared_files import Location
from srpo_core.training import refresh
from srpo_core.training.checkpoint import WEIGHTS, newest_checkpoint, open_checkpoint, restore, step_location
from srpo_core.training.job import REFRESHED
from srpo_core.training.learner import adamw
from srpo_core.training.refresh import begins_block, block_start
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.worker import Worker
from srpo_core.weights.shards import read_whole

CPU = torch.device("cpu")
SEED = 11


@pytest.fixture(scope="module")
def project(tiny_project, tmp_path_factory):
    """A project with two pairs of each of five prompts."""
    root = tmp_path_factory.mktemp("cached")
    (root / "assets").symlink_to(tiny_project / "assets")
    shutil.copytree(tiny_project / "runs/embed", root / "runs/embed")
    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        texts, _, _ = read_embeddings("train")
        images = [torch.randn(16, 64, generator=generator) for _ in range(2 * len(texts))]
        write_pairs(images, texts, seed=SEED, images_per_prompt=2)
    return root


@pytest.fixture
def cached_job(job, project, monkeypatch):
    """Six steps of four images, with checkpoints after two, four and six."""
    monkeypatch.chdir(project)
    return with_train(
        replace(job, inputs=Location.of(project)),
        steps=6,
        rollout={
            "source": "cached",
            "num_inference_steps": 2,
            "cached": {"seed": SEED, "images_per_prompt": 2},
        },
    )


def with_train(job, **changes):
    values = patched(job.train.model_dump(mode="json"), changes)
    return replace(job, train=type(job.train).model_validate(values))


def refreshed(job, every):
    return with_train(job, rollout={"cached": {"refresh_every": every}})


def worker(job, rank=0, world=1):
    return Worker(job, rank=rank, world=world, device=CPU)


def weights(job):
    return read_whole(newest_checkpoint(job.state, checkpoint_steps(job.train)).location.path / WEIGHTS)


def test_a_sample_starts_from_the_pair_of_its_prompt_and_the_epochs_use_the_pairs_in_turn(cached_job):
    trained = worker(cached_job)
    pairs, seen = trained.prompts.pairs, {}
    for step in range(1, 6):  # 20 samples are four epochs of five prompts
        batch = trained.batch(step)
        assert sorted(batch.given) == [0, 1, 2, 3]
        for place, text in enumerate(batch.prompts):
            row, number = trained.prompts.texts.index(text), ((step - 1) * 4 + place) // 5 % 2
            seen.setdefault(text, []).append(number)
            assert torch.equal(batch.noise[place], pair_noise((16, 64), SEED, text, number))
            assert torch.equal(batch.given[place], pairs.image(row, number))
    assert set(map(tuple, seen.values())) == {(0, 1, 0, 1)}
    x0, eps = starting_images(trained.model, batch, cached_job.train)
    assert torch.equal(x0, torch.stack([batch.given[place] for place in range(4)]))
    assert torch.equal(eps, batch.noise)


def test_the_seed_of_the_run_changes_the_order_of_the_pairs_and_none_of_them(cached_job):
    found = []
    for seed in (0, 1):
        trained = worker(replace(cached_job, seed=seed))
        batches = [trained.batch(step) for step in range(1, 6)]
        texts = [text for batch in batches for text in batch.prompts]
        images = [batch.given[place].numpy().tobytes() for batch in batches for place in range(4)]
        found.append((texts, set(zip(texts, images, strict=True))))
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_the_batches_of_two_workers_together_are_the_batch_of_one(cached_job):
    whole = worker(cached_job).batch(3)
    for rank in range(2):
        share = worker(cached_job, rank, 2).batch(3)
        assert share.prompts == whole.prompts[rank::2]
        assert torch.equal(share.noise, whole.noise[rank::2])
        for place, image in share.given.items():
            assert torch.equal(image, whole.given[2 * place + rank])


def test_a_step_makes_no_rollout_and_trains(cached_job, monkeypatch):
    calls = []
    trained = worker(cached_job)
    trained.model.transformer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    metrics = trained.step(1)
    assert set(calls) == {True}
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_trains_the_samplers_own_steps_refuses_cached_images_in_one_line(cached_job, method):
    train = cached_job.train.model_copy(update={"method": method})
    if METHODS[method].real_images:
        method_of(train)
        return
    with pytest.raises(
        ConfigError, match=r"rollout.source must be online, not 'cached'; methods that can"
    ) as error:
        method_of(train)
    assert "\n" not in str(error.value)


def test_blocks_begin_after_every_n_steps_and_never_if_n_is_0(cached_job):
    never, three = cached_job.train, refreshed(cached_job, 3).train
    assert [step for step in range(1, 11) if begins_block(three, step)] == [4, 7, 10]
    assert [block_start(three, step) for step in range(1, 8)] == [0, 0, 0, 3, 3, 3, 6]
    assert not [step for step in range(1, 11) if begins_block(never, step)]


def test_a_block_starts_from_images_of_the_weights_at_its_beginning_and_of_the_same_noise(cached_job):
    job = refreshed(cached_job, 2)
    job = replace(job, resources=job.resources.model_copy(update={"keep_checkpoints": 3}))
    trained, batches = worker(job), {}
    honest = trained.batch
    trained.batch = lambda step: batches.setdefault(step, honest(step))
    trained.run()
    for start in (2, 4):
        model = worker(job).model
        restore(
            open_checkpoint(step_location(job.state, start), verify=False),
            model.transformer,
            adamw(model.transformer, job.train),
            None,
        )
        for step in (start + 1, start + 2):
            batch = batches[step]
            expected = roll_out(model, batch.noise, batch.condition, job.train.rollout, job.train)
            given = torch.stack([batch.given[place] for place in range(4)])
            assert torch.allclose(given, expected, atol=1e-4)
    base = worker(cached_job)
    for step in (1, 2):
        for place, image in batches[step].given.items():
            assert torch.equal(image, base.batch(step).given[place])


def test_a_pair_that_a_block_uses_twice_is_generated_once(cached_job, monkeypatch):
    """Three steps have twelve samples of five prompts with two pairs each, or one."""
    rolled, honest = [], refresh.roll_out
    monkeypatch.setattr(
        refresh, "roll_out", lambda model, eps, *rest: rolled.append(len(eps)) or honest(model, eps, *rest)
    )
    job = refreshed(cached_job, 3)
    two = worker(job)
    noise = {image.numpy().tobytes() for step in (4, 5, 6) for image in two.batch(step).noise}
    two.run()
    assert sum(rolled) == len(noise) < 12
    rolled.clear()
    single = replace(job, state=Location.of(job.state.path / "single"))
    trained = worker(single)
    trained.prompts = replace(trained.prompts, pairs=replace(trained.prompts.pairs, images_per_prompt=1))
    trained.run()
    assert sum(rolled) == 5


@pytest.mark.parametrize("every", [2, 3, 4, 5])
def test_a_run_that_resumes_at_the_beginning_of_a_block_or_within_it_ends_with_the_same_bits(
    cached_job, tmp_path, every
):
    job = refreshed(cached_job, every)
    worker(job).run()
    straight = weights(job)
    for stop in (2, 4):
        other = replace(job, state=Location.of(tmp_path / f"stopped-{stop}"))
        stopped = worker(other)
        honest = stopped.step

        def dies(step, honest=honest, stop=stop):
            if step == stop + 2:
                raise KeyboardInterrupt
            return honest(step)

        stopped.step = dies
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
        worker(replace(other, resume=stop)).run()
        resumed = weights(other)
        assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_other_refresh_intervals_train_other_weights(cached_job, tmp_path):
    found = []
    for every in (0, 2, 4):
        job = replace(refreshed(cached_job, every), state=Location.of(tmp_path / str(every)))
        worker(job).run()
        found.append(weights(job))
    for one, two in ((0, 1), (1, 2), (0, 2)):
        assert any(not torch.equal(found[one][name], found[two][name]) for name in found[one])


def test_a_resumed_run_without_its_images_says_so_in_one_line(cached_job):
    job = refreshed(cached_job, 3)
    worker(job).run()
    (job.state.path / REFRESHED / "000003.safetensors").unlink()
    with pytest.raises(
        ArtifactError, match=r"000003.safetensors, the images from which the steps after step 3 start"
    ):
        worker(replace(job, resume=4)).run()


def test_images_from_which_no_checkpoint_resumes_are_removed(cached_job):
    job = refreshed(with_train(cached_job, steps=10, checkpoint_every=2), 1)
    job = replace(job, resources=job.resources.model_copy(update={"keep_checkpoints": 1}))
    worker(job).run()
    names = [name.removesuffix(".safetensors") for name in (job.state / REFRESHED).names()]
    assert names == ["000006", "000007", "000008", "000009"], "for a run that resumes after step 6 or 8"


@pytest.mark.distributed
@pytest.mark.parametrize("shard", [True, False])
def test_two_workers_learn_from_cached_and_newer_pairs_what_one_learns(cached_job, tmp_path, shard):
    """Nine pairs are generated anew after three steps, so the second worker repeats one."""

    def learned(name, world, **resources):
        own = ranks.changed(refreshed(cached_job, 3), tmp_path, name, resources=resources, checkpoint_every=6)
        ranks.train(own, world, double=True)
        return weights(own)

    alone = learned("alone", 1)
    together = learned("together", 2, shard=shard, train_workers=2)
    apart = max(float((together[name] - one).norm() / one.norm()) for name, one in alone.items())
    print(f"largest relative difference of a tensor: {apart:.1e}")
    assert apart < 1e-5
