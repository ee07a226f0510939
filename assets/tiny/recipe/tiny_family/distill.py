"""Guidance distillation: one call with the guidance as input does what two calls with and without text did."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tiny_family.base import OUT as BASE
from tiny_family.base import save_pipeline
from tiny_family.captions import CLIP_TOKENS, T5_TOKENS, token_ids
from tiny_family.figures import write_figures
from tiny_family.flow import noisy_batch, read_latents, velocity
from tiny_family.pictures import PARQUET, SUBJECTS
from tiny_family.settings import compiled, read_settings
from tiny_family.training import Plan, Task, mean_loss, train
from tiny_family.vae import OUT as VAE

OUT: Final = Path("out/family_base")


def read_base() -> Any:
    """The undistilled pipeline in float32."""
    from diffusers import FluxPipeline

    return FluxPipeline.from_pretrained(BASE, torch_dtype=torch.float32)


class DistillTask:
    """Teach the guidance input of the transformer; text encoders stay as they are."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pipeline = read_base()
        self.latents = read_latents()
        self.tokenizers = pipeline.tokenizer, pipeline.tokenizer_2
        self.encoders = pipeline.text_encoder.eval(), pipeline.text_encoder_2.eval()
        self.module: nn.Module = pipeline.transformer
        self.teacher = copy.deepcopy(pipeline.transformer).requires_grad_(requires_grad=False)
        self.student, self.taught = compiled(self._velocity, settings), compiled(self._teacher, settings)
        self.batch_size, self.guidance = settings["batch_size"], settings["guidance"]

    def is_hidden(self, name: str) -> bool:
        """Matrices inside the blocks."""
        return "transformer_blocks." in name and ".norm" not in name

    def _velocity(self, x: Tensor, sigma: Tensor, guidance: Tensor, pooled: Tensor, embeds: Tensor) -> Tensor:
        return velocity(self.module, x, sigma, guidance, pooled, embeds)

    def _teacher(self, x: Tensor, sigma: Tensor, guidance: Tensor, pooled: Tensor, embeds: Tensor) -> Tensor:
        return velocity(self.teacher, x, sigma, guidance, pooled, embeds)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        clip, t5 = self.tokenizers
        pooled = self.encoders[0](token_ids(clip, texts, CLIP_TOKENS)).pooler_output
        return pooled, self.encoders[1](token_ids(t5, texts, T5_TOKENS))[0]

    def loss(self, generator: torch.Generator) -> Tensor:
        """Squared distance to v(empty) + g · (v(text) − v(empty)) of the teacher, for random g."""
        n = self.batch_size
        batch = noisy_batch(self.latents, n, generator, null_share=0.0)
        low, high = self.guidance
        guidance = low + (high - low) * torch.rand(n, generator=generator)
        pooled, embeds = self._encode([*batch.texts, *[""] * n])
        with torch.no_grad():
            twice, levels = torch.cat([batch.x, batch.x]), torch.cat([batch.sigma, batch.sigma])
            with_text, without = self.taught(twice, levels, torch.ones(2 * n), pooled, embeds).chunk(2)
            target = without + guidance[:, None, None] * (with_text - without)
        student: Tensor = self.student(batch.x, batch.sigma, guidance, pooled[:n], embeds[:n])
        loss: Tensor = (student - target).square().mean()
        return loss


def build(settings: Mapping[str, Any]) -> Task:
    """The task of one process."""
    return DistillTask(settings)


def main() -> None:
    """Distil and save the base that the family ships."""
    settings = read_settings("distill")
    plan = Plan(**settings["plan"])
    trained = train(build, settings, plan, [PARQUET, SUBJECTS, VAE, BASE])
    pipeline = read_base()
    pipeline.transformer.load_state_dict(trained.weights)
    save_pipeline(
        (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2),
        (pipeline.tokenizer, pipeline.tokenizer_2),
        OUT,
    )
    figures = {
        "loss": mean_loss(build(settings), trained.weights, plan.seed),
        "cpu_seconds": trained.cpu_seconds,
    }
    write_figures(plan.name, figures)


if __name__ == "__main__":
    main()
