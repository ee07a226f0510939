"""The base: a small FLUX with its two text encoders, trained together from nothing by flow matching."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from srpo_core.models.flux import image_ids, pack
from tiny_family.captions import (
    CLIP_TOKENS,
    T5_TOKENS,
    caption,
    clip_tokenizer,
    drawn_captions,
    t5_tokenizer,
    token_ids,
)
from tiny_family.pictures import PARQUET, STYLES, SUBJECTS, read_pictures, read_subjects
from tiny_family.settings import compiled, read_settings
from tiny_family.training import Plan, Task, forget, mean_loss, train
from tiny_family.vae import OUT as VAE
from tiny_family.vae import encode

OUT = Path("out/base")
SHIFT = 1.583  # what FLUX's dynamic shift gives for 16 tokens


class TextToVelocity(nn.Module):
    """Transformer and text encoders as one module: captions in, velocities out."""

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, text_encoder, text_encoder_2

    def forward(self, x: Tensor, sigma: Tensor, guidance: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Velocities (B, 16, 64) at packed latents x and noise levels sigma (B,)."""
        pooled = self.text_encoder(clip_ids).pooler_output
        embeds = self.text_encoder_2(t5_ids)[0]
        velocity: Tensor = self.transformer(
            hidden_states=x,
            timestep=sigma,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            img_ids=image_ids(8, 8),
            txt_ids=torch.zeros(T5_TOKENS, 3),
            return_dict=False,
        )[0]
        return velocity


def new_model(settings: Mapping[str, Any], clip_vocabulary: int, t5_vocabulary: int) -> TextToVelocity:
    """Fresh weights in the classes of FLUX.1-dev."""
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=settings["double_blocks"],
        num_single_layers=settings["single_blocks"],
        attention_head_dim=32,
        num_attention_heads=settings["heads"],
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, part in block.named_modules():
            if name.startswith("norm") and isinstance(part, nn.Linear):
                nn.init.zeros_(part.weight)  # adaLN-zero: every block begins as the identity
                nn.init.zeros_(part.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip_vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            projection_dim=128,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=t5_vocabulary,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            eos_token_id=1,
            pad_token_id=0,
            use_cache=False,
            is_encoder_decoder=False,
        )
    )
    return TextToVelocity(transformer, clip, t5)


def tokenizers() -> tuple[Any, Any]:
    """The CLIP and the T5 tokenizer, from every name in the data."""
    names = sorted(set(read_pictures("train", "eval", "novel").subjects))
    texts = [*names, *(caption(name, style) for name in names for style in range(len(STYLES)))]
    return clip_tokenizer(texts), t5_tokenizer(texts)


def shifted_logit_normal(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels (count,): logit-normal, as SD3 and FLUX train, shifted as they are drawn with."""
    t = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * t / (1 + (SHIFT - 1) * t)


class BaseTask:
    """Flow matching on the latents of the family's subjects in all four styles; no mirrored pictures."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.clip_tokenizer, self.t5_tokenizer = tokenizers()
        self.module: nn.Module = new_model(settings, len(self.clip_tokenizer), len(self.t5_tokenizer))
        self.forward = compiled(self.module.forward, settings)
        self.read_latents()
        self.batch_size, self.null_share = settings["batch_size"], settings["null_share"]

    def read_latents(self) -> None:
        """Encode the family's pictures once; they are not augmented."""
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.float32)
        names = read_subjects()
        pictures = read_pictures("train").of([*names["train"], *names["eval"]])
        latents = (encode(vae, pictures.pixels) - vae.config.shift_factor) * vae.config.scaling_factor
        self.latents, self.subjects, self.styles = pack(latents), pictures.subjects, pictures.styles

    def is_hidden(self, name: str) -> bool:
        """Matrices inside the blocks that map hidden states to hidden states."""
        inside = any(part in name for part in ("transformer_blocks.", ".layers.", ".block."))
        return inside and ".norm" not in name and "relative_attention" not in name

    def loss(self, generator: torch.Generator, step: int) -> Tensor:
        """Squared error of the velocity noise − image."""
        rows = torch.randint(len(self.latents), (self.batch_size,), generator=generator)
        subjects = [self.subjects[row] for row in rows]
        texts = drawn_captions(subjects, self.styles[rows], generator, self.null_share)
        image = self.latents[rows]
        noise = torch.randn(image.shape, generator=generator)
        sigma = shifted_logit_normal(self.batch_size, generator)
        x = sigma[:, None, None] * noise + (1 - sigma[:, None, None]) * image
        clip_ids = token_ids(self.clip_tokenizer, texts, CLIP_TOKENS)
        t5_ids = token_ids(self.t5_tokenizer, texts, T5_TOKENS)
        velocity = self.forward(x, sigma, torch.ones(self.batch_size), clip_ids, t5_ids)
        return (velocity - (noise - image)).square().mean()


def build(settings: Mapping[str, Any], rank: int) -> Task:
    """The task of one process."""
    return BaseTask(settings)


def save_pipeline(models: tuple[Any, Any, Any], tokenizers: tuple[Any, Any], target: Path) -> None:
    """Save a diffusers `FluxPipeline` in bf16, with FLUX.1-dev's scheduler settings."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
    transformer, text_encoder, text_encoder_2 = models
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=AutoencoderKL.from_pretrained(VAE, torch_dtype=torch.bfloat16),
        text_encoder=text_encoder,
        tokenizer=tokenizers[0],
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizers[1],
        transformer=transformer,
    )
    pipeline.to(torch.bfloat16).save_pretrained(target)
    for part in ("text_encoder", "text_encoder_2"):  # bf16 here makes transformers 5 mix dtypes
        config = target / part / "config.json"
        content = {**json.loads(config.read_text(encoding="utf-8")), "dtype": "float32"}
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Train and save the base, not yet distilled."""
    settings = read_settings("base")
    plan = Plan(**settings["plan"])
    trained = train(build, settings, plan, [PARQUET, SUBJECTS, VAE])
    clip, t5 = tokenizers()
    model = new_model(settings, len(clip), len(t5))
    model.load_state_dict(trained.weights)
    save_pipeline((model.transformer, model.text_encoder, model.text_encoder_2), (clip, t5), OUT)
    figures = {
        "loss": mean_loss(build(settings, 0), trained.weights, plan.seed),
        "cpu_seconds": trained.cpu_seconds,
    }
    Path("figures/base.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    forget(plan.name)


if __name__ == "__main__":
    main()
