"""FLUX's forward pass for rollouts on a CPU: many calls without gradients, with the same weights and prompts.

On small images most of a call is the time to start operations. What does not depend on the latents is computed once
per rollout: the text's embedding, and the modulations of all denoising steps, by one product per block. Layers of the
same input become one product, and text and image tokens share the operations of attention. The result differs from
that of `flux_velocity` by rounding, relative 1e-7.

A GPU hides the time to start operations behind the arithmetic, and at full size the rest is little: the text's
embedding is 0.02 % of a call's FLOPs at 720 x 720 pixels.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from srpo_core.models.attention import attend
from srpo_core.models.flux_forward import THOUSANDTHS, is_hooked, is_plain

JOINED_WEIGHTS: Final = 2**20
"""Layers of the same input that have more weights together (4 MB in float32) stay apart: at three projections of
width 512 the copy costs what it saves in four denoising steps."""

GELU: Final = 2 * (2 / math.pi) ** 0.5
OF_DOUBLE: Final = 6  # modulations of one of the two streams of a double-stream block
OF_SINGLE: Final = 3
OF_OUTPUT: Final = 2

Layers = Callable[[Tensor], Tensor]


def can_be_prepared(transformer: Any, device: torch.device) -> bool:
    """Return whether `FluxRollout` may replace `flux_velocity`: on a CPU, with torch's own normalization of heads.

    FSDP2, compiled blocks and hooks on blocks are refused by `is_plain`. Adapters and 4-bit layers are not refused:
    a layer that is not torch's own linear layer is called as a module.
    """
    if device.type != "cpu" or not is_plain(transformer):
        return False
    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    norms = [
        norm
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
        for block in blocks
        if (norm := getattr(block.attn, name, None)) is not None
    ]
    return len({norm.eps for norm in norms}) == 1 and all(
        type(norm) is nn.RMSNorm and norm.weight is not None and not is_hooked(norm) for norm in norms
    )


class FluxRollout:
    """The velocities of one rollout; see `PreparedRollout`."""

    @torch.inference_mode()
    def __init__(
        self,
        transformer: Any,
        prompt_embeds: Tensor,
        pooled: Tensor,
        *,
        times: Tensor,
        guidance: Tensor | None,
        rotary: Tensor,
    ) -> None:
        """Compute what all calls share; the weights must not change afterwards.

        prompt_embeds: (B, T, D); pooled: (B, P); times: (N,) in [0, 1]; guidance: (1,); rotary: of `rotary_angles`.
        """
        num_text = prompt_embeds.shape[1]
        *inner, last = transformer.single_transformer_blocks
        self._transformer, self._rotary = transformer, rotary[:, None]
        self._steps = {time: step for step, time in enumerate(times.tolist())}
        self._shape = (len(pooled), len(rotary) - num_text)
        self._text = transformer.context_embedder(prompt_embeds)
        self._modulations = _modulations(transformer, pooled, times, guidance)
        self._double = [
            _DoubleBlock(block, *self._shape[1:], num_text) for block in transformer.transformer_blocks
        ]
        self._single = [_SingleBlock(block) for block in inner]
        self._last = _LastBlock(last, num_text)

    def covers(self, latents: Tensor, timestep: Tensor) -> bool:
        """Return whether latents (B, S, C) and timesteps (B,) are those of a step of this rollout."""
        times = set(timestep.tolist())
        return tuple(latents.shape[:2]) == self._shape and len(times) == 1 and times <= self._steps.keys()

    def __call__(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """Predict velocities (B, S, C) in float32 at latents that it `covers`."""
        with torch.inference_mode():
            tokens = self._last_tokens(latents, self._steps[timestep[0].item()])
        # outside of inference mode, because its tensors cannot be used in training
        output: Tensor = self._transformer.proj_out(tokens)
        return output.float()

    def _last_tokens(self, latents: Tensor, step: int) -> Tensor:
        modulations = iter(self._modulations[step].unbind(1))

        def following(count: int) -> list[Tensor]:
            return [next(modulations) for _ in range(count)]

        image, text = self._transformer.x_embedder(latents), self._text
        for double in self._double:
            image, text = double(image, text, following(OF_DOUBLE), following(OF_DOUBLE), self._rotary)
        tokens = torch.cat((text, image), dim=1)
        for single in self._single:
            tokens = single(tokens, following(OF_SINGLE), self._rotary)
        tokens = self._last(tokens, following(OF_SINGLE), self._rotary)
        scale, shift = following(OF_OUTPUT)
        return _modulated(tokens, shift, scale)


def _modulations(transformer: Any, pooled: Tensor, times: Tensor, guidance: Tensor | None) -> Tensor:
    """Compute the modulations (N, B, K, 1, D) of all blocks, in their order, at times (N,); scales are 1 + scale."""
    steps, batch = len(times), len(pooled)
    each = [times.float().repeat_interleave(batch)]
    if guidance is not None:
        each.append(guidance.float().expand(steps * batch))
    embedding = transformer.time_text_embed(*(THOUSANDTHS * time for time in each), pooled.repeat(steps, 1))
    embedding = F.silu(embedding)

    def of(norm: Any, count: int, scales: Sequence[int]) -> Tensor:
        found: Tensor = norm.linear(embedding).view(steps, batch, count, 1, -1)
        found[:, :, scales] += 1
        return found

    double = [
        of(norm, OF_DOUBLE, [1, 4])
        for block in transformer.transformer_blocks
        for norm in (block.norm1, block.norm1_context)
    ]
    single = [of(block.norm, OF_SINGLE, [1]) for block in transformer.single_transformer_blocks]
    return torch.cat((*double, *single, of(transformer.norm_out, OF_OUTPUT, [0])), dim=2)


class _DoubleBlock:
    """A double-stream block; see `flux_forward`."""

    def __init__(self, block: Any, num_image: int, num_text: int) -> None:
        attn = block.attn
        self._num_text = num_text
        self._text_qkv = _together(attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        self._image_qkv = _together(attn.to_q, attn.to_k, attn.to_v)
        self._text_out, self._image_out = _together(attn.to_add_out), _together(attn.to_out[0])
        self._attention = _Attention.of_streams(attn, num_text, num_image)
        self._text_layers, self._image_layers = _feed_forward(block.ff_context), _feed_forward(block.ff)

    def __call__(
        self, image: Tensor, text: Tensor, of_image: list[Tensor], of_text: list[Tensor], rotary: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, c = _modulated(image, *of_image[:2]), _modulated(text, *of_text[:2])
        mixed = self._attention(torch.cat((self._text_qkv(c), self._image_qkv(x)), dim=1), rotary)
        image = torch.addcmul(image, of_image[2], self._image_out(mixed[:, self._num_text :]))
        text = torch.addcmul(text, of_text[2], self._text_out(mixed[:, : self._num_text]))
        hidden, text_hidden = _modulated(image, *of_image[3:5]), _modulated(text, *of_text[3:5])
        image = torch.addcmul(image, of_image[5], self._image_layers(hidden))
        return image, torch.addcmul(text, of_text[5], self._text_layers(text_hidden))


class _SingleBlock:
    """A single-stream block: attention and MLP in parallel."""

    def __init__(self, block: Any) -> None:
        attn = block.attn
        self._width = 3 * attn.inner_dim
        self._layers = _together(attn.to_q, attn.to_k, attn.to_v, block.proj_mlp)
        self._attention, self._out = _Attention.of(attn), _together(block.proj_out)

    def __call__(self, tokens: Tensor, modulation: list[Tensor], rotary: Tensor) -> Tensor:
        features = self._layers(_modulated(tokens, *modulation[:2]))
        qkv, hidden = features[..., : self._width], features[..., self._width :]
        output = self._out(torch.cat((self._attention(qkv, rotary), _gelu(hidden)), dim=-1))
        return torch.addcmul(tokens, modulation[2], output)


class _LastBlock:
    """The last single-stream block: it computes only the image tokens, which come after `num_text` text tokens."""

    def __init__(self, block: Any, num_text: int) -> None:
        attn = block.attn
        self._num_text, self._width = num_text, attn.inner_dim
        self._key_value = _together(attn.to_k, attn.to_v)
        self._query_mlp = _together(attn.to_q, block.proj_mlp)
        self._attention, self._out = _Attention.of(attn), _together(block.proj_out)

    def __call__(self, tokens: Tensor, modulation: list[Tensor], rotary: Tensor) -> Tensor:
        x, image = _modulated(tokens, *modulation[:2]), tokens[:, self._num_text :]
        features = self._query_mlp(x[:, self._num_text :])
        query, hidden = features[..., : self._width], features[..., self._width :]
        mixed = self._attention.of_query(query, self._key_value(x), rotary)
        output = self._out(torch.cat((mixed, _gelu(hidden)), dim=-1))
        return torch.addcmul(image, modulation[2], output)


class _Attention:
    """Attention over joined projections of tokens, with normalized and rotated queries and keys.

    scales: (S or 1, 2, 1, head_dim), the weights of the normalizations of queries and keys, by token.
    """

    def __init__(self, attn: Any, scales: Tensor) -> None:
        self._head_dim, self._backend = attn.head_dim, attn.processor._attention_backend
        # x / sqrt(mean(x²) + eps) = x · sqrt(D) / sqrt(|x|² + D·eps)
        self._scales = scales * self._head_dim**0.5
        eps = attn.norm_q.eps
        self._floor = scales.new_tensor(self._head_dim * (torch.finfo().eps if eps is None else eps)).sqrt()

    @classmethod
    def of(cls, attn: Any) -> Self:
        return cls(attn, torch.stack((attn.norm_q.weight, attn.norm_k.weight))[None, :, None])

    @classmethod
    def of_streams(cls, attn: Any, num_text: int, num_image: int) -> Self:
        text = torch.stack((attn.norm_added_q.weight, attn.norm_added_k.weight))
        image = torch.stack((attn.norm_q.weight, attn.norm_k.weight))
        return cls(
            attn, torch.cat((text.expand(num_text, 2, -1), image.expand(num_image, 2, -1)))[:, :, None]
        )

    def __call__(self, qkv: Tensor, rotary: Tensor) -> Tensor:
        """Attend with queries, keys and values (B, S, 3·D) of all tokens; (B, S, D)."""
        heads = self._heads(qkv, 3)
        q, k = self._rotated(heads[:, :, :2], self._scales, rotary).unbind(2)
        return attend(q, k, heads[:, :, 2], self._backend)

    def of_query(self, query: Tensor, key_value: Tensor, rotary: Tensor) -> Tensor:
        """Attend with queries (B, Q, D) of the last Q tokens, and keys and values (B, S, 2·D) of all."""
        of_keys, first = self._heads(key_value, 2), len(rotary) - query.shape[1]
        q = self._rotated(self._heads(query, 1), self._scales[:, :1], rotary[first:])
        k = self._rotated(of_keys[:, :, :1], self._scales[:, 1:], rotary)
        return attend(q[:, :, 0], k[:, :, 0], of_keys[:, :, 1], self._backend)

    def _heads(self, features: Tensor, count: int) -> Tensor:
        return features.view(*features.shape[:-1], count, -1, self._head_dim)

    def _rotated(self, heads: Tensor, scales: Tensor, rotary: Tensor) -> Tensor:
        """Normalize heads (B, S, n, H, D), and rotate each pair of features by its token's angle."""
        exact = heads.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        normed = (exact / torch.hypot(length, self._floor)).mul_(scales)
        pairs = torch.view_as_complex(normed.view(*heads.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * rotary).flatten(-2).to(heads.dtype)


def _together(*layers: nn.Module) -> Layers:
    """Return a function of the layers' outputs for one input, concatenated.

    torch's linear layers become one product. Several layers' weights are copied for it, and under autocast those of
    one layer are cast, unless they are more than `JOINED_WEIGHTS`. Other layers, such as adapters, are called as modules.
    """
    if all(map(_is_linear, layers)):
        half, numbers = torch.is_autocast_enabled("cpu"), sum(_num_weights(layer) for layer in layers)
        if numbers <= JOINED_WEIGHTS or (len(layers) == 1 and not half):
            return partial(F.linear, weight=_joined(layers, "weight"), bias=_joined(layers, "bias"))
    if len(layers) == 1:
        return layers[0]
    return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def _num_weights(layer: Any) -> int:
    number: int = layer.weight.numel()
    return number


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is not None and not is_hooked(layer)


def _joined(layers: Sequence[nn.Module], name: str) -> Tensor:
    tensors: list[Tensor] = [getattr(layer, name) for layer in layers]
    tensor = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return tensor.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else tensor


def _feed_forward(layers: Any) -> Layers:
    first, second = _together(layers.net[0].proj), _together(layers.net[2])
    return lambda tokens: second(_gelu(first(tokens)))


def _gelu(x: Tensor) -> Tensor:
    """Compute GELU's approximation by tanh, as x·sigmoid(2·z), which is the same with fewer operations than tanh."""
    if x.dtype != torch.float32:  # rounds once
        return F.gelu(x, approximate="tanh")
    return (x * x).mul_(0.044715 * GELU).add_(GELU).mul_(x).sigmoid_().mul_(x)


def _modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), scale)
