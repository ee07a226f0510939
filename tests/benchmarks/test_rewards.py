"""Each mix of benchmarks/rewards.py trains a worker by its weighted sum, and is a row of the table in docs/training.md."""

from pathlib import Path

import pytest
import torch

from srpo_core.scorers import load_scorer
from srpo_core.training.worker import Worker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rewards(benchmark_named):
    return benchmark_named("rewards")


def test_every_mix_is_a_row_of_the_docs(rewards):
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = text.partition("benchmarks/rewards.py")[2].partition("\n\nHere ")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    written = {
        name: " + ".join(f"{'' if weight == 1 else f'{weight:g} · '}{one}" for one, weight in mix.items())
        for name, mix in rewards.MIXES.items()
    }
    assert [row.lower() for row in rows[1:]] == list(written.values())


def test_a_step_by_a_mix_has_the_sum_of_its_rewards(rewards, job):
    """In the process of a trial, on two images."""
    train = job.train.model_copy(update={"batch_size": 2})
    job = rewards.replace(job, train=train)
    worker = Worker(job, rank=0, world=1, device=torch.device("cpu"))
    rewards.use(worker, rewards.MIXES["clip + 0.1 style"], job.select_judge)
    metrics = worker.step(1)
    for branch in ("reward_denoise", "reward_inversion"):
        expected = metrics[f"{branch}_clip"] + 0.1 * metrics[f"{branch}_style"]
        assert metrics[branch] == pytest.approx(expected, rel=1e-5)
    assert metrics["grad_norm"] > 0


def test_the_second_reward_is_the_log_probability_of_the_style_that_a_text_names(rewards, job):
    judge = load_scorer(job.select_judge)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    first, last = judge.styles[0], judge.styles[-1]
    scores = rewards.StyleReward(judge).score(images, [f"{one}. a cat" for one in (first, last, last, first)])
    chances = judge.style_probabilities(images).clamp_min(rewards.LEAST)
    expected = torch.stack([chances[0, 0], chances[1, -1], chances[0, -1], chances[1, 0]]).log()
    assert torch.allclose(scores, expected)
