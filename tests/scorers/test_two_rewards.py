"""A training step on the two scorers of the reference implementation, HPSv2.1 and PickScore, as one list of rewards."""

from dataclasses import replace

import pytest
import torch

from srpo_core.config import RewardSettings
from srpo_core.training.worker import Worker

WEIGHTS = {"hps_v2": 1.0, "pick_score": 0.3}
BRANCHES = ("reward_denoise", "reward_inversion")


def first_step(job, directories, weights):
    """Make a step on small models of the scorers; return its metrics and the gradient, before it is clipped."""
    rewards = [
        RewardSettings(scorer=name, path=str(directories[name]), weight=weight)
        for name, weight in weights.items()
    ]
    align = job.train.direct_align.model_copy(update={"margin": 100.0})  # no reward is beyond it
    optimizer = job.train.optimizer.model_copy(update={"max_grad_norm": 1e9})
    train = job.train.model_copy(update={"batch_size": 2, "direct_align": align, "optimizer": optimizer})
    worker = Worker(replace(job, rewards=rewards, train=train), rank=0, world=1, device=torch.device("cpu"))
    before = [p.detach().clone() for p in worker.model.transformer.parameters()]
    metrics = worker.step(1)
    after = worker.model.transformer.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    gradient = torch.cat(
        [p.grad.flatten() for p in worker.model.transformer.parameters() if p.grad is not None]
    )
    return metrics, gradient


def test_a_step_on_hps_and_pick_score_maximizes_their_weighted_sum(job, directories):
    """The gradient of the sum is the weighted sum of the gradients, and each scorer's reward is logged alone."""
    metrics, gradient = first_step(job, directories, WEIGHTS)
    alone = {name: first_step(job, directories, {name: 1.0}) for name in WEIGHTS}
    for branch in BRANCHES:
        for name in WEIGHTS:
            assert metrics[f"{branch}_{name}"] == pytest.approx(alone[name][0][branch], rel=1e-4, abs=1e-6)
        total = sum(weight * metrics[f"{branch}_{name}"] for name, weight in WEIGHTS.items())
        assert metrics[branch] == pytest.approx(total, rel=1e-5)
    expected = sum(weight * alone[name][1] for name, weight in WEIGHTS.items())
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
    assert (gradient - alone["hps_v2"][1]).norm() > 0.01 * expected.norm(), "PickScore has an effect"
