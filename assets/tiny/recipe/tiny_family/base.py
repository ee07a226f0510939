"""The base: a small FLUX with its two text encoders, trained together from nothing by flow matching."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tiny_family.captions import CLIP_TOKENS, T5_TOKENS, caption, clip_tokenizer, t5_tokenizer, token_ids
from tiny_family.figures import write_figures
from tiny_family.flow import noisy_batch, read_latents, velocity
from tiny_family.pictures import PARQUET, STYLES, SUBJECTS, read_pictures
from tiny_family.settings import compiled, read_settings
from tiny_family.training import Plan, Task, mean_loss, train
from tiny_family.vae import OUT as VAE

OUT: Final = Path("out/base")
WIDTH: Final = 128  # of both text encoders


class TextToVelocity(nn.Module):
    """Transformer and text encoders as one module: captions in, velocities out."""

    def __init__(self, transformer: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.transformer, self.text_encoder, self.text_encoder_2 = transformer, text_encoder, text_encoder_2

    def forward(self, x: Tensor, sigma: Tensor, guidance: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """Velocities (B, 16, 64) at packed latents x and noise levels sigma (B,)."""
        pooled = self.text_encoder(clip_ids).pooler_output
        embeds = self.text_encoder_2(t5_ids)[0]
        return velocity(self.transformer, x, sigma, guidance, pooled, embeds)


def new_model(settings: Mapping[str, Any], clip_vocabulary: int, t5_vocabulary: int) -> TextToVelocity:
    """Fresh weights in the classes of FLUX.1-dev."""
    transformer = new_transformer(settings)
    return TextToVelocity(transformer, new_clip(clip_vocabulary), new_t5(t5_vocabulary))


def new_transformer(settings: Mapping[str, Any]) -> Any:
    """A `FluxTransformer2DModel` for 16 tokens, every block of which begins as the identity (adaLN-zero)."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=settings["double_blocks"],
        num_single_layers=settings["single_blocks"],
        attention_head_dim=32,
        num_attention_heads=settings["heads"],
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, part in block.named_modules():
            if name.startswith("norm") and isinstance(part, nn.Linear):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    return transformer


def new_clip(vocabulary: int) -> Any:
    """A `CLIPTextModel` of two layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def new_t5(vocabulary: int) -> Any:
    """A `T5EncoderModel` of two layers."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
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


def tokenizers() -> tuple[Any, Any]:
    """The CLIP and the T5 tokenizer, from every name in the data."""
    names = sorted(set(read_pictures("train", "eval", "novel").subjects))
    texts = [*names, *(caption(name, style) for name in names for style in range(len(STYLES)))]
    return clip_tokenizer(texts), t5_tokenizer(texts)


class BaseTask:
    """Flow matching on the latents of the family's subjects in all four styles; no mirrored pictures."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.clip_tokenizer, self.t5_tokenizer = tokenizers()
        self.module: nn.Module = new_model(settings, len(self.clip_tokenizer), len(self.t5_tokenizer))
        self.forward = compiled(self.module.forward, settings)
        self.latents = read_latents()
        self.batch_size, self.null_share = settings["batch_size"], settings["null_share"]

    def is_hidden(self, name: str) -> bool:
        """Matrices inside the blocks that map hidden states to hidden states."""
        inside = any(part in name for part in ("transformer_blocks.", ".layers.", ".block."))
        return inside and ".norm" not in name and "relative_attention" not in name

    def loss(self, generator: torch.Generator) -> Tensor:
        """Squared error of the velocity noise − image."""
        batch = noisy_batch(self.latents, self.batch_size, generator, self.null_share)
        clip_ids = token_ids(self.clip_tokenizer, batch.texts, CLIP_TOKENS)
        t5_ids = token_ids(self.t5_tokenizer, batch.texts, T5_TOKENS)
        predicted = self.forward(batch.x, batch.sigma, torch.ones(self.batch_size), clip_ids, t5_ids)
        return (predicted - batch.velocity).square().mean()


def build(settings: Mapping[str, Any]) -> Task:
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
        "loss": mean_loss(build(settings), trained.weights, plan.seed),
        "cpu_seconds": trained.cpu_seconds,
    }
    write_figures(plan.name, figures)


if __name__ == "__main__":
    main()
