"""A vision transformer's class feature, written out: a faster form of open_clip's forward pass.

Attention keeps the order (batch, token, width). `nn.MultiheadAttention` swaps the first two, which turns one product
per batch into one small product per token. The patch embedding's gradient is a matrix product, because that of a
strided convolution is slow. The feature of a single image is bit-identical to open_clip's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812


def is_plain(visual: Any) -> bool:
    """Whether `class_feature` may replace the tower's forward pass: a stock, frozen ViT that returns its class token."""
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if type(visual) is not VisionTransformer:
        return False
    blocks = visual.transformer.resblocks
    return (
        visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and _patches_cover_image(visual)
        and visual.attn_pool is None
        and visual.proj is not None
        and visual.conv1.bias is None
        and not any(parameter.requires_grad for parameter in visual.parameters())
        and not visual.output_tokens
        and not visual.transformer.grad_checkpointing
        and not visual.training
        and all(type(block) is ResidualAttentionBlock and _is_stock(block.attn) for block in blocks)
    )


def class_feature(visual: Any, pixels: Tensor) -> Tensor:
    """Compute the output (B, D) of the tower `visual` for normalised pixels (B, 3, H, W), with gradients to the pixels."""
    patches: Tensor = _Patches.apply(pixels, visual.conv1.weight)
    classes = visual.class_embedding.expand(len(pixels), 1, -1)
    tokens = visual.ln_pre(torch.cat((classes, patches), dim=1) + visual.positional_embedding)
    for block in visual.transformer.resblocks:
        tokens = tokens + block.ls_1(_attention(block.attn, block.ln_1(tokens)))
        tokens = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
    feature: Tensor = visual.ln_post(tokens)[:, 0] @ visual.proj
    return feature


def _patches_cover_image(visual: Any) -> bool:
    """Whether the patches cover the image without a remainder."""
    return all(side % patch == 0 for side, patch in zip(visual.image_size, visual.patch_size, strict=True))


def _is_stock(attn: Any) -> bool:
    return (
        type(attn) is nn.MultiheadAttention
        and attn.in_proj_weight is not None
        and attn.in_proj_bias is not None
        and attn.bias_k is None
        and not attn.add_zero_attn
    )


class _Patches(torch.autograd.Function):
    """Patch embeddings (B, S, width) of pixels: a convolution whose stride is its kernel size."""

    @staticmethod
    def forward(context: Any, pixels: Tensor, weight: Tensor) -> Tensor:
        context.weight, context.shape = weight, pixels.shape
        return F.conv2d(pixels, weight, stride=weight.shape[2:]).flatten(2).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        batch, channels, height, width = context.shape
        rows, columns = context.weight.shape[2:]
        # autocast computes the embedding in another type, and is no longer active in the backward pass
        cells = gradient @ context.weight.flatten(1).to(gradient.dtype)
        grid = cells.view(batch, height // rows, width // columns, channels, rows, columns)
        return grid.permute(0, 3, 1, 4, 2, 5).reshape(context.shape), None


def _attention(attn: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """Self-attention of tokens (B, S, width)."""
    projected = F.linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = (_heads(x, attn.num_heads) for x in projected.chunk(3, dim=-1))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    output: Tensor = attn.out_proj(mixed)
    return output


def _heads(features: Tensor, num_heads: int) -> Tensor:
    """Reshape (B, S, width) to (B, heads, S, width / heads)."""
    return features.view(*features.shape[:-1], num_heads, -1).transpose(1, 2)
