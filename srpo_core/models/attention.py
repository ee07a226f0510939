"""The implementation of attention that a transformer uses, by diffusers' switch for it."""

from typing import Any, Final

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from srpo_core.errors import ConfigError

DEFAULT: Final = "native"  # torch chooses among its kernels, by device, type and shape


def use_attention(transformer: Any, backend: str) -> None:
    """Let all attention layers of a transformer use `backend`, a value of diffusers' `AttentionBackendName`.

    Raises:
        ConfigError: the installed diffusers does not have this backend, or the backend lacks a package.
    """
    if backend == DEFAULT:
        return
    from diffusers.models.attention_dispatch import attention_backend

    try:
        with attention_backend(DEFAULT):  # set_attention_backend also changes the default of all other models
            transformer.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(
            f"train.compute.attention {backend}: {' '.join(str(error).split())[:200]}; choose native"
        ) from error


def attend(q: Tensor, k: Tensor, v: Tensor, backend: Any) -> Tensor:
    """Attend over heads (B, S, H, D); (B, S, H · D). backend: of diffusers' attention processor, None for torch's choice."""
    if backend is None:
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return mixed.transpose(1, 2).flatten(2)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    chosen: Tensor = dispatch_attention_fn(q, k, v, backend=backend)
    return chosen.flatten(2)
