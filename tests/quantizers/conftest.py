"""A FLUX of hidden width 256 with 2 + 2 blocks, and its forward pass."""

import pytest
import torch
from diffusers import FluxTransformer2DModel


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Matrices have standard deviation 0.045, chosen to reproduce the errors in the table FACTS."""
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=2,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.045)
    directory = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def forward(checkpoint):
    """Return a function that computes one float32 forward pass from the weights of this model."""
    config = FluxTransformer2DModel.load_config(checkpoint)
    model = FluxTransformer2DModel.from_config(config)
    generator = torch.Generator().manual_seed(1)
    batch, tokens, words = 2, 64, 16

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    ids = torch.zeros(tokens, 3)
    ids[:, 1], ids[:, 2] = torch.arange(tokens) // 8, torch.arange(tokens) % 8
    inputs = {
        "hidden_states": noise(batch, tokens, config["in_channels"]),
        "encoder_hidden_states": noise(batch, words, config["joint_attention_dim"]),
        "pooled_projections": noise(batch, config["pooled_projection_dim"]),
        "timestep": torch.tensor([1.0, 0.5]),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(words, 3),
    }

    @torch.no_grad()
    def run(weights):
        model.load_state_dict(weights)
        return model(**inputs, return_dict=False)[0]

    return run
