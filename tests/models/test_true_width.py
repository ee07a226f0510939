"""Train one step of a FLUX.1-dev slice at true width (hidden 3072, one block of each kind)."""

from pathlib import Path

import pytest
import torch

from srpo_core.algorithm import method_of
from srpo_core.algorithm.method import TrainBatch
from srpo_core.config import load_settings
from srpo_core.models.base import Base
from srpo_core.models.flux import POOLED_EMBEDS, PROMPT_EMBEDS, Flux
from srpo_core.models.lora import add_lora, initialize_lora
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws
from srpo_core.scorers import load_rewards
from srpo_core.training.learner import Learner, adamw
from srpo_core.training.state import trained_parameters
from srpo_core.weights.models_lock import read_lock

pytestmark = pytest.mark.pipeline


@pytest.fixture
def sliced(monkeypatch):
    """The profile flux1_dev_lora with one block of each kind, the VAE of FLUX.1-dev, random weights and 64 pixels."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    settings = load_settings(Path("profiles/flux1_dev_lora.yaml"))
    architecture = read_lock()[settings.model.path].architecture
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel.from_config(
        {**architecture["transformer"], "num_layers": 1, "num_single_layers": 1}
    )
    add_lora(transformer, settings.train.lora)
    initialize_lora(transformer, settings.seed)
    vae = AutoencoderKL.from_config(architecture["vae"])
    model = Base(Flux(vae, None, height=64, width=64), transformer.train(), vae)
    rollout = settings.train.rollout.model_copy(update={"num_inference_steps": 2})
    # float32, because a CPU without bfloat16 support would need minutes
    compute = settings.train.compute.model_copy(update={"autocast": False})
    lora = settings.train.lora.model_copy(update={"frozen": "float32"})
    changes = {"batch_size": 1, "rollout": rollout, "compute": compute, "lora": lora}
    train = settings.train.model_copy(update=changes)
    return model.prepare(train.compute), train


def test_one_step_at_true_width_changes_only_the_adapters(sliced):
    model, train = sliced
    assert model.transformer.inner_dim == 3072
    frozen = {name: p for name, p in model.transformer.named_parameters() if not p.requires_grad}
    assert sum(p.numel() for p in frozen.values()) == 545_548_096
    sums = {name: p.double().sum().item() for name, p in frozen.items()}
    before = {name: tensor.clone() for name, tensor in trained_parameters(model.transformer).items()}
    reward = load_rewards(load_settings(Path("profiles/tiny.yaml")).rewards)
    learner = Learner(model, reward, adamw(model.transformer, train), train, method_of(train))
    batch = TrainBatch(
        prompts=["red apple"],
        condition=Condition({PROMPT_EMBEDS: torch.randn(1, 16, 4096), POOLED_EMBEDS: torch.randn(1, 768)}),
        noise=torch.randn(1, *model.latent_shape),
        draws=Draws(0, 1, [0]),
        given={},
        wanted="Real",
        unwanted="Anime",
    )
    metrics = learner.step(batch, 1)
    assert metrics["grad_norm"] > 0
    # B starts at zero, so only B has a gradient in the first step
    moved = {
        name
        for name, tensor in trained_parameters(model.transformer).items()
        if not torch.equal(tensor, before[name])
    }
    assert moved
    assert any(".lora_B." in name for name in moved)
    assert {name: p.double().sum().item() for name, p in frozen.items()} == sums
