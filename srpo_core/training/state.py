"""The training state of a worker as named tensors: trained parameters and the optimizer's state.

Random state is no part of it: every random number is keyed by seed, purpose, step and sample, and no model
uses torch's global generators.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import ArtifactError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# how bitsandbytes maps 8 bits to a moment: constants that all parameters share, made with the optimizer's state
TABLES: Final = frozenset({"qmap1", "qmap2"})


@dataclass(frozen=True)
class TrainState:
    """What a checkpoint stores of a worker at the end of a step.

    metrics: one row per step; evaluations: those of early stop, as plain values; averages: the moving averages of the
    trained parameters by name, empty without `train.ema`.
    """

    transformer: "torch.nn.Module"
    optimizer: "torch.optim.Optimizer"
    step: int
    metrics: Sequence[Mapping[str, float]]
    evaluations: Sequence[Mapping[str, Any]] = ()
    averages: "Mapping[str, Tensor]" = field(default_factory=dict)


def trained_parameters(transformer: "torch.nn.Module") -> dict[str, "Tensor"]:
    """Return the parameters that require a gradient, detached, by name."""
    return {name: p.detach() for name, p in transformer.named_parameters() if p.requires_grad}


def optimizer_state(
    transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> dict[str, "Tensor"]:
    """Return the optimizer's tensors by `parameter:name`, scalars and plain numbers as (1,).

    Raises:
        ArtifactError: a trained parameter has no state.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in transformer.named_parameters()}
    missing = [name for p, name in names.items() if p.requires_grad and not optimizer.state.get(p)]
    if missing:
        raise ArtifactError(
            f"the optimizer has no state for {len(missing)} trained tensors, the first is {missing[0]}: training "
            "could not resume from such a checkpoint"
        )
    return {
        f"{names[parameter]}:{name}": _with_dimension(optimizer.state[parameter][name])
        for parameter, name in _optimizer_entries(transformer, optimizer)
    }


def load_optimizer_state(
    transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer", state: Mapping[str, "Tensor"]
) -> None:
    """Copy tensors in the order and form of `optimizer_state` into the optimizer."""
    for (parameter, name), tensor in zip(
        _optimizer_entries(transformer, optimizer), state.values(), strict=True
    ):
        target = optimizer.state[parameter][name]
        if isinstance(target, int):
            optimizer.state[parameter][name] = int(tensor)
            continue
        target.copy_(tensor.view(target.shape) if tensor.ndim != target.ndim else tensor)


def initialize_optimizer(optimizer: "torch.optim.Optimizer") -> None:
    """Create the optimizer's state without changing a weight; torch itself creates it in the first step."""
    import torch

    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def copy_to_cpu(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Copy tensors to the CPU, where the next step does not change them; a rank's shard stays a shard."""
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
    )
    copies: dict[str, Tensor] = stager.stage(dict(tensors))  # type: ignore[assignment]
    stager.close()
    return copies


def _with_dimension(value: "Tensor | int") -> "Tensor":
    """Return a state's entry as a tensor of one dimension at least, which a sharded tensor needs.

    torch's AdamW counts its steps in a scalar tensor, that of bitsandbytes in an integer.
    """
    import torch

    if isinstance(value, int):
        return torch.tensor([value])
    return value if value.ndim else value.view(1)


def _optimizer_entries(
    transformer: "torch.nn.Module", optimizer: "torch.optim.Optimizer"
) -> Iterator[tuple["Tensor", str]]:
    """Yield (parameter, name) of each entry of the optimizer's state, in the order of the parameters."""
    for parameter in transformer.parameters():
        for name in sorted(optimizer.state.get(parameter, {}).keys() - TABLES):
            yield parameter, name
