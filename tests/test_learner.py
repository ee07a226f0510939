import pytest
import torch

from srpo_core.errors import ConfigError, DivergenceError
from srpo_core.learner import method_of, require_finite


def test_a_gradient_that_is_not_finite_stops_with_its_step_and_tensor():
    module = torch.nn.Linear(2, 1)
    module.weight.grad = torch.tensor([[1.0, float("nan")]])
    module.bias.grad = torch.ones(1)
    with pytest.raises(DivergenceError, match="step 7: grad_norm is nan; gradient of weight is not finite"):
        require_finite({"loss": 1.0, "grad_norm": float("nan")}, module, 7)


def test_a_method_that_trains_the_sampler_refuses_real_pictures(job):
    offline = job.train.rollout.model_copy(update={"source": "offline"})
    with pytest.raises(ConfigError, match=r"'refl' .*source must be online, not 'offline'"):
        method_of(job.train.model_copy(update={"method": "refl", "rollout": offline}))
