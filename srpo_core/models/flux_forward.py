"""FLUX's transformer written out for short calls: bit-identical to diffusers' forward, with less overhead.

On small images diffusers' forward spends more time on bookkeeping than on arithmetic, and a rollout calls it at
every step. Here rotary angles are computed once per image size and applied as complex numbers, text and image tokens
stay concatenated through the single-stream blocks, and the last block computes only the image tokens, because the
text tokens are not used after it. Rounding follows diffusers' order: AdamW turns a different last bit of a gradient
near zero into a different step. Layers are called as modules, so that adapters and hooks on them work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from srpo_core.models.attention import attend
from srpo_core.models.checkpointing import SomeBlocks

THOUSANDTHS = 1000  # FLUX takes time and guidance in thousandths


def is_plain(transformer: Any) -> bool:
    """Return whether `flux_velocity` may replace the transformer's own forward.

    It may not for a subclass, a wrapper such as FSDP's, an IP adapter, a hook on the transformer or on a block, a
    compiled block, fused projections, or activation checkpointing by anything but `SomeBlocks`. FSDP2 gathers weights in
    hooks of a block's call, and a compiled block has its own code; docs/training.md says what that costs.
    """
    from diffusers import FluxTransformer2DModel

    if type(transformer) is not FluxTransformer2DModel or not _is_checkpointed_by_us_or_not_at_all(
        transformer
    ):
        return False
    single = transformer.single_transformer_blocks
    blocks = (*transformer.transformer_blocks, *single)
    return (
        len(single) > 0
        and not any(is_hooked(module) for module in (transformer, *blocks))
        and all(_is_stock(block.attn) for block in blocks)
    )


def _is_checkpointed_by_us_or_not_at_all(transformer: Any) -> bool:
    return not transformer.gradient_checkpointing or isinstance(
        transformer._gradient_checkpointing_func, SomeBlocks
    )


def _is_stock(attn: Any) -> bool:
    from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor

    processor = attn.processor
    return (
        type(attn) is FluxAttention
        and type(processor) is FluxAttnProcessor
        and processor._parallel_config is None
        and not attn.fused_projections
        and not is_hooked(attn)
    )


def is_hooked(module: torch.nn.Module) -> bool:
    """Return whether calling `module` does more than its class's forward; diffusers' hooks replace it on the instance."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None


@contextmanager
def exact_times(transformer: Any, timestep: Tensor, guidance: Tensor | None) -> Iterator[None]:
    """Within the context, diffusers' forward receives timestep and guidance (B,) in float32.

    Otherwise it rounds them to the latents' type, and bfloat16 represents only every fourth integer above 512.
    guidance: None if the model takes none.
    """

    def exact(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        times = (time for time in (timestep, guidance) if time is not None)
        return (*(THOUSANDTHS * time.float() for time in times), inputs[-1])

    handle = transformer.time_text_embed.register_forward_pre_hook(exact)
    try:
        yield
    finally:
        handle.remove()


def rotary_angles(transformer: Any, text_ids: Tensor, image_ids: Tensor) -> Tensor:
    """Compute the rotations exp(iθ) of text and image tokens, complex (T + S, 1, head_dim / 2)."""
    cos, sin = transformer.pos_embed(torch.cat((text_ids, image_ids)))
    return torch.complex(cos[:, None, ::2].contiguous(), sin[:, None, ::2].contiguous())


def flux_velocity(
    transformer: Any,
    latents: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    *,
    timestep: Tensor,
    guidance: Tensor | None,
    rotary: Tensor,
) -> Tensor:
    """Compute the output (B, S, C) of `transformer` for latents (B, S, C).

    prompt_embeds: (B, T, D); pooled: (B, P); timestep, guidance: (B,); rotary: of `rotary_angles`.
    """
    image, text = transformer.x_embedder(latents), transformer.context_embedder(prompt_embeds)
    # in float32 whatever the model's type: bfloat16 represents only every fourth integer above 512
    thousandths = [time.float() * THOUSANDTHS for time in (timestep, guidance) if time is not None]
    embedding = F.silu(transformer.time_text_embed(*thousandths, pooled))[:, None]
    run = _runner(transformer)
    for block in transformer.transformer_blocks:
        image, text = run(block, image, text, embedding, rotary, forward=partial(_double_block, block))
    tokens, num_text = torch.cat((text, image), dim=1), text.shape[1]
    *inner, last = transformer.single_transformer_blocks
    for block in inner:
        tokens = run(block, tokens, embedding, rotary, forward=partial(_single_block, block))
    image = run(last, tokens, embedding, rotary, forward=partial(_single_block, last, first=num_text))
    scale, shift = transformer.norm_out.linear(embedding).chunk(2, dim=-1)
    output: Tensor = transformer.proj_out(_modulated(image, shift, scale))
    return output


def _runner(transformer: Any) -> SomeBlocks:
    if transformer.gradient_checkpointing and torch.is_grad_enabled():
        chosen: SomeBlocks = transformer._gradient_checkpointing_func
        return chosen
    return SomeBlocks(frozenset())


def _double_block(
    block: Any, image: Tensor, text: Tensor, embedding: Tensor, rotary: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute a double-stream block: image and text tokens have separate weights and share the attention."""
    attn, num_text = block.attn, text.shape[1]
    modulation = block.norm1.linear(embedding).chunk(6, dim=-1)
    text_modulation = block.norm1_context.linear(embedding).chunk(6, dim=-1)
    x, c = _modulated(image, *modulation[:2]), _modulated(text, *text_modulation[:2])
    q = torch.cat(
        (attn.norm_added_q(_heads(attn.add_q_proj(c), attn)), attn.norm_q(_heads(attn.to_q(x), attn))), 1
    )
    k = torch.cat(
        (attn.norm_added_k(_heads(attn.add_k_proj(c), attn)), attn.norm_k(_heads(attn.to_k(x), attn))), 1
    )
    v = torch.cat((_heads(attn.add_v_proj(c), attn), _heads(attn.to_v(x), attn)), 1)
    mixed = attend(_rotated(q, rotary), _rotated(k, rotary), v, attn.processor._attention_backend)
    image = image + modulation[2] * attn.to_out[0](mixed[:, num_text:])
    text = text + text_modulation[2] * attn.to_add_out(mixed[:, :num_text])
    image = image + modulation[5] * _feed_forward(block.ff, image, *modulation[3:5])
    text = text + text_modulation[5] * _feed_forward(block.ff_context, text, *text_modulation[3:5])
    return image, text


def _single_block(block: Any, tokens: Tensor, embedding: Tensor, rotary: Tensor, *, first: int = 0) -> Tensor:
    """Compute a single-stream block, attention and MLP in parallel; returns the tokens from `first` on."""
    attn = block.attn
    shift, scale, gate = block.norm.linear(embedding).chunk(3, dim=-1)
    x = _modulated(tokens, shift, scale)
    read = x[:, first:]
    q, k = attn.norm_q(_heads(attn.to_q(read), attn)), attn.norm_k(_heads(attn.to_k(x), attn))
    backend = attn.processor._attention_backend
    mixed = attend(_rotated(q, rotary[first:]), _rotated(k, rotary), _heads(attn.to_v(x), attn), backend)
    output = block.proj_out(torch.cat((mixed, F.gelu(block.proj_mlp(read), approximate="tanh")), dim=2))
    updated: Tensor = tokens[:, first:] + gate * output
    return updated


def _feed_forward(layers: Any, tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    hidden = layers.net[0].proj(_modulated(tokens, shift, scale))
    output: Tensor = layers.net[2](F.gelu(hidden, approximate="tanh"))
    return output


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _heads(features: Tensor, attn: Any) -> Tensor:
    return features.view(*features.shape[:-1], -1, attn.head_dim)


def _rotated(heads: Tensor, rotary: Tensor) -> Tensor:
    """Rotate each pair of features of heads (B, S, H, D) by its token's angle."""
    pairs = torch.view_as_complex(heads.float().view(*heads.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary).flatten(3).to(heads.dtype)
