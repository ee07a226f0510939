"""Pairs of noise and image by the tiny base: what determines them, and which later runs reuse."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import stage_deps
import torch

from srpo_core.algorithm.schedule import shifted_sigmas
from srpo_core.config import GenerateSettings, load_settings
from srpo_core.errors import DivergenceError
from srpo_core.generation import keys, rollouts, tasks
from srpo_core.generation.rollouts import CODE_OF_PAIRS, RolloutJob, generate_pairs, read_images
from srpo_core.models import load_base
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import Condition
from srpo_core.randomness import keyed_noise

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def settings():
    return load_settings(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def job(settings, tiny_project, tmp_path, monkeypatch):
    """Two pairs of each of five prompts, in calls of four. Thread count as in a stage, because sums depend on it."""
    monkeypatch.chdir(tiny_project)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.resources.threads_per_worker)
    prompts, _, condition = read_embeddings("train")
    cached = settings.train.rollout.cached.model_copy(update={"seed": 7, "images_per_prompt": 2})
    rollout = settings.train.rollout.model_copy(
        update={"source": "cached", "num_inference_steps": 3, "cached": cached}
    )
    generate = GenerateSettings(
        num_inference_steps=3, guidance_scale=2.0, batch_size=4, autocast=False, tf32=False, decode="whole"
    )
    yield RolloutJob(settings.model, generate, rollout, False, prompts, condition)
    torch.set_num_threads(threads)


@pytest.fixture
def run(settings, tmp_path, monkeypatch):
    """Return a function that generates the pairs of a job as one run does, and the number of images of each call."""
    calls, honest, numbers = [], rollouts.images_of, iter(range(100))

    def counted(base, job, some):
        calls.append(len(set(some)))
        return honest(base, job, some)

    monkeypatch.setattr(rollouts, "images_of", counted)

    def run(job, directory=None, **resources):
        calls.clear()
        directory = directory or tmp_path / f"run-{next(numbers)}"
        directory.mkdir(exist_ok=True)
        generate_pairs(job, directory, settings.resources.model_copy(update=resources))
        return torch.stack(list(read_images(job, directory))), list(calls)

    return run


def of_prompts(job, rows):
    return replace(job, prompts=[job.prompts[row] for row in rows], condition=job.condition[rows])


def cached(job, **changes):
    return with_rollout(job, cached=job.rollout.cached.model_copy(update=changes))


def with_rollout(job, **changes):
    return replace(job, rollout=job.rollout.model_copy(update=changes))


def test_a_pair_is_what_the_base_generates_from_its_keyed_noise_step_by_step(job, run):
    images, calls = run(job)
    assert calls == [4, 4, 2]
    base = load_base(job.model)
    sigmas = shifted_sigmas(3, job.rollout.shift)
    for number in range(2):
        noise = [keyed_noise(base.latent_shape, 7, "rollout", prompt, number) for prompt in job.prompts]
        z = torch.stack(noise)
        with torch.no_grad():
            for sigma, following in pairwise(sigmas):
                v = base.velocity(z, sigma.expand(len(z)), job.rollout.guidance_scale, job.condition)
                z = z + (following - sigma) * v
        # batches of another size round differently
        assert torch.allclose(images[5 * number : 5 * number + 5], z, atol=1e-4)
    assert not torch.allclose(images[:5], images[5:], atol=0.1)


def test_a_pair_depends_neither_on_the_other_prompts_nor_on_their_order(job, run):
    images, _ = run(job, kept_images_gb=0.0)
    some, _ = run(of_prompts(job, [3, 0]), kept_images_gb=0.0)
    assert torch.equal(some, images[[3, 0, 8, 5]])


def test_a_later_run_generates_only_pairs_that_no_run_had_and_needs_no_model_without_any(
    job, run, monkeypatch
):
    first, calls = run(of_prompts(job, [0, 1, 2]))
    assert sum(calls) == 6
    whole, calls = run(job)
    assert sum(calls) == 4
    assert torch.equal(whole[[0, 1, 2, 5, 6, 7]], first)
    more, calls = run(cached(job, images_per_prompt=3))
    assert sum(calls) == 5
    assert torch.equal(more[:10], whole)
    monkeypatch.setattr(rollouts.LoadedBase, "as_model", lambda *_: pytest.fail("the model is not needed"))
    again, calls = run(job)
    assert calls == []
    assert torch.equal(again, whole)


def test_an_interrupted_run_generates_only_missing_pairs_and_gives_the_same_bits(
    job, run, monkeypatch, tmp_path
):
    whole, _ = run(job, kept_images_gb=0.0)
    honest = rollouts.images_of

    def dies(base, job, some):
        if 4 in some:
            raise KeyboardInterrupt
        return honest(base, job, some)

    directory = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "images_of", dies)
        with pytest.raises(KeyboardInterrupt):
            run(job, directory, kept_images_gb=0.0)
    assert len(list(directory.iterdir())) == 4
    images, calls = run(job, directory, kept_images_gb=0.0)
    assert calls == [4, 2]
    assert torch.equal(images, whole)
    assert not (tmp_path / "home/images").exists()


def test_two_tasks_on_other_machines_generate_the_same_bits(job, run, settings, tmp_path, monkeypatch):
    """The tasks run here one after the other; tests/generation/test_batches.py runs them on Ray."""
    whole, _ = run(job, kept_images_gb=0.0)
    monkeypatch.setenv("SRPO_SHARED", "memory://test-rollouts")
    shares = []

    def in_tasks(job, directory, resources, make, kept):
        with tasks.exchange_for(job, directory) as (shared, exchange):
            missing = tasks.missing_files(job, directory)
            for first in range(resources.generate_workers):
                shares.append(missing[first :: resources.generate_workers])
                tasks.generate_in_task(shared, exchange, shares[-1], resources, make, kept)

    monkeypatch.setattr(tasks, "_generate_on_ray", in_tasks)
    images, calls = run(job, generate_workers=2)
    assert [len(share) for share in shares] == [5, 5]
    assert sum(calls) == 10
    assert torch.equal(images, whole)
    _, calls = run(job, generate_workers=2)
    assert calls == [], "the second run reads them below the shared location"


def test_everything_that_determines_a_pair_changes_its_name_and_nothing_else_does(job, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "assets/tiny/family/base", tmp_path / "moved")

    def names(one):
        return set(one.file_names)

    own = names(job)
    assert len(own) == 10
    moved = replace(job, model=job.model.model_copy(update={"path": str(tmp_path / "moved")}))
    assert names(moved) == own
    assert names(with_rollout(job, source="online", share_offline=0.9)) == own
    assert names(cached(job, refresh_every=3, num_prompts=4)) == own
    steered = Condition({name: tensor + 1 for name, tensor in job.condition.tensors.items()})
    changed = [
        with_rollout(job, num_inference_steps=2),
        with_rollout(job, shift=3.0),
        with_rollout(job, solver="ab2"),
        with_rollout(job, guidance_scale=1.0),
        cached(job, seed=8),
        replace(job, reference=True),
        replace(job, prompts=[f"{prompt}s" for prompt in job.prompts]),
        replace(job, condition=steered),
        replace(job, model=job.model.model_copy(update={"height": 128})),
        *(
            replace(job, generate=job.generate.model_copy(update=one))
            for one in ({"batch_size": 2}, {"autocast": True}, {"tf32": True})
        ),
    ]
    seen = [own, *(names(one) for one in changed)]
    for part in ("scheduler/scheduler_config.json", "transformer/config.json"):
        with (tmp_path / "moved" / part).open("a") as file:
            file.write("\n")
        seen.append(names(replace(moved, reference=False)))
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_digest", lambda _: "other code or libraries")
        seen.append(names(replace(job, reference=False)))
    assert len(set().union(*seen)) == sum(map(len, seen)), "no two share a name"


def test_rounding_of_another_device_or_number_of_threads_is_not_reused(job, monkeypatch):
    before = job.kept_name(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert job.kept_name(0) != before


def test_the_hashed_code_is_what_generating_pairs_imports():
    """The package `algorithm` imports every method; none of them changes a pair."""
    package, found = ROOT / "srpo_core", set()
    waiting = {"srpo_core.generation.rollouts"}
    without = ("srpo_core.generation.tasks", "srpo_core.generation.keys")  # they compute nothing
    while waiting:
        module = waiting.pop()
        if module in found or module in without or module == "srpo_core.algorithm":
            continue
        if any(module == name or module.startswith(f"{name}.") for name in stage_deps.WITHOUT_EFFECT):
            continue
        found.add(module)
        imported = stage_deps.graph().find_modules_directly_imported_by(module)
        waiting |= {one for one in imported if one.startswith("srpo_core.")}
    hashed = {
        str(file.relative_to(ROOT))
        for entry in CODE_OF_PAIRS
        for file in ((package / entry).rglob("*.py") if (package / entry).is_dir() else [package / entry])
    }
    assert {stage_deps.file_of(module) for module in found} <= hashed | {"srpo_core/prompts.py"}
    files = {entry for entry in CODE_OF_PAIRS if entry.endswith(".py")}
    needed = {stage_deps.file_of(module).removeprefix("srpo_core/") for module in found}
    assert files <= needed, "no entry is superfluous"


def test_a_base_that_generates_nan_is_named_with_the_prompt(job, run, tmp_path):
    from srpo_core.models import load_transformer

    shutil.copytree(ROOT / "assets/tiny/family/base", tmp_path / "broken")
    broken = load_transformer(job.model, tmp_path / "broken/transformer")
    broken.proj_out.bias.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken/transformer")
    damaged = replace(job, model=job.model.model_copy(update={"path": str(tmp_path / "broken")}))
    with pytest.raises(
        DivergenceError, match=r"^rollouts: the base generates NaN .*'red apple': check its weights"
    ):
        run(damaged)
