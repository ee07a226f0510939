"""Counting the FLOPs and bytes of a training call on the meta device: real code and shapes, no values, no memory.

The meta device has neither autocast nor an attention kernel, so `AsOnDevice` imitates those of a GPU.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

IN_BFLOAT16 = {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, torch.addmm, torch.baddbmm}
IN_FLOAT32 = {F.layer_norm, F.group_norm, F.rms_norm, torch.layer_norm, torch.group_norm, torch.rms_norm}


class AsOnDevice(TorchFunctionMode):
    """Use attention without a score matrix and, with `autocast`, torch.autocast's rules for bfloat16."""

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            given = args[:3] or (options["query"], options["key"], options["value"])
            q, k, v = (_cast(tensor, torch.bfloat16) if self.autocast else tensor for tensor in given)
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        if self.autocast and func in IN_BFLOAT16:
            args, options = _cast_all((args, options), torch.bfloat16)
        elif self.autocast and func in IN_FLOAT32:
            args, options = _cast_all((args, options), torch.float32)
        return func(*args, **options)


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count FLOPs, and the bytes of live tensors that operations created: the current and the peak value.

    torch's FlopCounterMode follows modules by hooks, which keep alive the tensors that checkpointed blocks recompute.
    """

    def __init__(self, *, collect: bool = True) -> None:
        """collect: search for reference cycles, which only recomputation makes."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.collect = collect
        self.flops = 0.0
        self.now = self.peak = self._collected = 0
        gc.freeze()  # do not search existing objects in every collection
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # tensors that no operation created, such as weights, do not count
                self._seen.setdefault(tensor.untyped_storage(), 0)
        made = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:  # type: ignore[attr-defined]
            self.flops += count(*args, **(kwargs or {}), out_val=made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen[storage] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage.nbytes())
        if self.now > self.peak:
            self._collect()
            self.peak = max(self.peak, self.now)
        return made

    @contextmanager
    def into(self, phase: "Phase") -> Iterator[None]:
        """Add the FLOPs in this context, and the bytes that stay alive after it, to a phase."""
        flops, now = self.flops, self.now
        yield
        phase.flops += self.flops - flops
        phase.forward += self.flops - flops
        phase.kept += self.now - now

    def _collect(self) -> None:
        """Free reference cycles, such as the frames of recomputation, which a real run frees as well."""
        if self.collect and self.now > 1.02 * self._collected:
            gc.collect()
            self._collected = self.now

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass
class Phase:
    """The cost of one phase of a step for the images of one call.

    flops: a multiply-add counts as two; kept: bytes that stay alive for the backward pass; forward: FLOPs of the forward
    pass alone.
    """

    flops: float = 0.0
    kept: int = 0
    forward: float = 0.0


@dataclass(frozen=True)
class Counted:
    """A training call in phases, for `num_images` images in transformer, decoder and reward.

    rollout: one forward pass without gradients; peak_rollout: its peak bytes; peak_before: peak bytes until the
    transformer's backward pass begins; peak_after: from then on; peak_scored: peak bytes if decoder and reward have no
    backward pass; latents: bytes of these images' latents. Weights and their gradients are not included.
    """

    num_images: int
    rollout: Phase
    transformer: Phase
    decode: Phase
    reward: Phase
    peak_rollout: int
    peak_before: int
    peak_after: int
    peak_scored: int = 0
    latents: int = 0


@dataclass(frozen=True)
class Forward:
    """A call without gradients: its FLOPs, and the peak bytes of the tensors that it creates."""

    flops: float
    peak: int


def count_call(model: Any, reward: Any, condition: Any, *, num_images: int, autocast: bool) -> Counted:
    """Count a rollout's forward pass, and a trained model call with decoder, reward and backward pass.

    model, reward: on the meta device; condition: of one image.
    """
    rows = [0] * num_images
    with torch.device("meta"):
        latents = torch.empty(num_images, *model.latent_shape)
        time = torch.empty(num_images)
    condition = condition[rows]
    texts = [""] * (2 * num_images)  # wanted and unwanted
    with torch.no_grad(), torch.device("meta"):
        reward.score(torch.empty(1, 3, 64, 64), texts[:1])  # most rewards keep what they computed of a text
    hooks = [
        p.register_post_accumulate_grad_hook(_drop) for p in model.transformer.parameters() if p.requires_grad
    ]
    meter = Meter()
    rollout, transformer, decode, score_phase = Phase(), Phase(), Phase(), Phase()
    with AsOnDevice(autocast=autocast), meter:
        with meter.into(rollout), torch.no_grad():
            model.velocity(latents, time, 1.0, condition)
        peak_rollout, meter.peak = meter.peak, meter.now
        with torch.no_grad():
            reward.score(model.decode(latents).clamp(0, 1), texts)
        peak_scored, meter.peak = meter.peak, meter.now
        with meter.into(transformer):
            velocity = model.velocity(latents, time, 1.0, condition)
        start = velocity.detach().requires_grad_()  # detached, so that each phase is counted separately
        with meter.into(decode):
            images = model.decode(start).clamp(0, 1)
        seen = images.detach().requires_grad_()
        with meter.into(score_phase):
            score = reward.score(seen, texts).sum()
        _back(meter, score_phase, score, torch.ones_like(score))
        del score
        _back(meter, decode, images, seen.grad)
        del images, seen
        before, meter.peak = meter.peak, meter.now
        _back(meter, transformer, velocity, start.grad)
    for hook in hooks:
        hook.remove()
    peaks = (peak_rollout, before, meter.peak, peak_scored)
    return Counted(num_images, rollout, transformer, decode, score_phase, *peaks, latents.nbytes)


def count_forward(call: Callable[[], Any], *, autocast: bool) -> Forward:
    """Count a call on the meta device without gradients; weights are not included."""
    meter = Meter(collect=False)
    with AsOnDevice(autocast=autocast), meter, torch.no_grad():
        call()
    return Forward(meter.flops, meter.peak)


def _back(meter: Meter, phase: Phase, output: Tensor, gradient: Tensor | None) -> None:
    """Run a phase's backward pass by the engine itself, because modes are inactive inside autograd.backward."""
    from torch.autograd.graph import _engine_run_backward

    no_graph = {"allow_unreachable": True, "accumulate_grad": True}
    before = meter.flops
    _engine_run_backward((output,), (gradient,), *(False, False), (), **no_graph)
    phase.flops += meter.flops - before


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _cast_all(values: Any, dtype: torch.dtype) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda value: _cast(value, dtype), values)
