"""The VAE: diffusers' `AutoencoderKL`, 8 times down, 16 latent channels, as FLUX has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tiny_family.figures import write_figures
from tiny_family.pictures import PARQUET, flipped, read_pictures, shifted, to_float
from tiny_family.settings import compiled, read_settings
from tiny_family.training import Plan, Task, train

OUT = Path("out/vae")


def new_vae(channels: tuple[int, ...]) -> Any:
    """A fresh `AutoencoderKL` for 64 x 64 pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


class VaeTask:
    """Reconstruct pictures of the 919 training subjects."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.vae = new_vae(tuple(settings["channels"]))
        self.module: nn.Module = self.vae
        self.pixels = read_pictures("train").pixels
        self.batch_size, self.kl_weight = settings["batch_size"], settings["kl_weight"]
        self.latent_noise = settings["latent_noise"]
        self.forward = compiled(self._forward, settings)

    def is_hidden(self, name: str) -> bool:
        """All but the first and the last convolution of encoder and decoder."""
        return "conv_in" not in name and "conv_out" not in name

    def _forward(self, images: Tensor, noise: Tensor, noise_share: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.vae.encoder(images).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        spread = (log_variance / 2).exp() + noise_share * mean.detach().std()
        decoded = self.vae.decoder(mean + spread * noise)
        return decoded, divergence

    def loss(self, generator: torch.Generator) -> Tensor:
        """Squared error, on which PSNR rests, and a little divergence that keeps latents near N(0, 1).

        Each picture's latents are decoded with noise of 0 to `latent_noise` of their deviation, as latents
        that a base draws are not exact.
        """
        rows = torch.randint(len(self.pixels), (self.batch_size,), generator=generator)
        images = flipped(shifted(to_float(self.pixels[rows]), generator, 3), generator) * 2 - 1
        images = images.contiguous(memory_format=torch.channels_last)
        noise = torch.randn(self.batch_size, 16, 8, 8, generator=generator)
        noise_share = self.latent_noise * torch.rand(self.batch_size, 1, 1, 1, generator=generator)
        decoded, divergence = self.forward(
            images, noise.contiguous(memory_format=torch.channels_last), noise_share
        )
        loss: Tensor = (decoded - images).square().mean() + self.kl_weight * divergence
        return loss


def build(settings: Mapping[str, Any]) -> Task:
    """The task of one process."""
    return VaeTask(settings)


@torch.no_grad()
def encode(vae: Any, pixels: Tensor, batch_size: int = 64) -> Tensor:
    """Latent means (N, 16, 8, 8) of bytes (N, 3, 64, 64), not yet scaled."""
    batches = [
        vae.encode(to_float(part) * 2 - 1).latent_dist.mean for part in torch.split(pixels, batch_size)
    ]
    return torch.cat(batches)


@torch.no_grad()
def psnr(vae: Any, pixels: Tensor, batch_size: int = 64) -> float:
    """Mean over pictures of the peak signal-to-noise ratio of the reconstruction, dB."""
    values = []
    for part in torch.split(pixels, batch_size):
        images = to_float(part)
        decoded = (vae.decode(vae.encode(images * 2 - 1).latent_dist.mean).sample / 2 + 0.5).clamp(0, 1)
        values.append(-10 * (decoded - images).square().mean((1, 2, 3)).log10())
    return float(torch.cat(values).mean())


def main() -> None:
    """Train, set scale and shift as the latents ask, save in bf16, measure."""
    settings = read_settings("vae")
    plan = Plan(**settings["plan"])
    trained = train(build, settings, plan, [PARQUET])
    vae = new_vae(tuple(settings["channels"]))
    vae.load_state_dict(trained.weights)
    vae.eval()
    latents = encode(vae, read_pictures("train").pixels)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std()))
    vae.to(torch.bfloat16).save_pretrained(OUT)
    vae.float()
    figures = {
        "psnr_unseen_db": psnr(vae, read_pictures("eval", "novel").pixels),
        "psnr_seen_db": psnr(vae, read_pictures("train").pixels[::4]),
        "cpu_seconds": trained.cpu_seconds,
    }
    write_figures(plan.name, figures)


if __name__ == "__main__":
    main()
