import pytest
import torch

from srpo_core.algorithm import method_of
from srpo_core.algorithm.method import LossTerm
from srpo_core.errors import ConfigError, DivergenceError
from srpo_core.training.learner import Learner, adamw, require_finite


def test_a_gradient_that_is_not_finite_raises_with_step_and_tensor():
    module = torch.nn.Linear(2, 1)
    module.weight.grad = torch.tensor([[1.0, float("nan")]])
    module.bias.grad = torch.ones(1)
    with pytest.raises(DivergenceError, match="step 7: grad_norm is nan; gradient of weight is not finite"):
        require_finite({"loss": 1.0, "grad_norm": float("nan")}, module, 7)


class Chain:
    """A base of two layers; only the gradient of the second is NaN."""

    def __init__(self):
        self.transformer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))


def test_the_error_names_the_gradient_that_is_not_finite(job):
    model = Chain()
    before = [p.detach().clone() for p in model.transformer.parameters()]

    def spoiled(model, *_):
        first, last = model.transformer
        last.weight.register_hook(lambda gradient: gradient * torch.nan)
        yield LossTerm(last(first(torch.ones(1, 2))).sum(-1), {})

    learner = Learner(model, None, adamw(model.transformer, job.train), job.train, spoiled)
    with pytest.raises(DivergenceError, match=r"step 3: grad_norm is nan; gradient of 1\.weight is not"):
        learner.step(None, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, model.transformer.parameters(), strict=True))


def test_a_method_that_trains_the_sampler_refuses_real_images(job):
    offline = job.train.rollout.model_copy(update={"source": "offline"})
    with pytest.raises(ConfigError, match=r"'refl' .*source must be online, not 'offline'"):
        method_of(job.train.model_copy(update={"method": "refl", "rollout": offline}))
