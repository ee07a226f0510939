"""diffusers' own single-file loader on a slice of FLUX.1 at its true width, 3072 with 1 + 1 blocks (0.5e9 weights)."""

import pytest
import torch
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig

from srpo_core.quantizers import QUANTIZERS, convert, open_flux

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A bfloat16 checkpoint with random weights."""
    directory = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(directory)
    return directory


def output(model):
    generator = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    with torch.no_grad():
        return model(
            hidden_states=noise(1, 16, 64),
            encoder_hidden_states=noise(1, 8, 4096),
            pooled_projections=noise(1, 768),
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([3.5]),
            img_ids=ids,
            txt_ids=torch.zeros(8, 3),
            return_dict=False,
        )[0].float()


@pytest.mark.parametrize(("name", "limit"), [("bf16", 0.0), ("fp8_e4m3fn", 0.04), ("q8_0", 0.02)])
def test_diffusers_gives_the_same_output_from_the_single_file_and_the_checkpoint(flux, tmp_path, name, limit):
    file = convert(open_flux(flux), {name: QUANTIZERS[name]}, tmp_path, stem="flux")[name][0]
    options = {"torch_dtype": torch.bfloat16, "config": str(flux), "local_files_only": True}
    if file.path.suffix == ".gguf":
        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=torch.bfloat16)
    ours = output(FluxTransformer2DModel.from_single_file(file.path, **options))
    exact = output(FluxTransformer2DModel.from_pretrained(flux, torch_dtype=torch.bfloat16))
    error = float((ours - exact).norm() / exact.norm())
    assert error <= limit
    assert (error > 0) == (limit > 0)
