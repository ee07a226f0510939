"""One training loop for every stage: several processes of one thread, resumable after a kill.

Gradients are averaged over the processes. Two threads in one process gave models of this size
nothing; two processes use both cores.
"""

import hashlib
import inspect
import json
import logging
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist

from srpo_core.runtime.processes import die_with_parent

STATE: Final = Path(".state")  # what a killed stage goes on from; ignored by git
LOG_EVERY: Final = 25
SAVE_SECONDS: Final = 120.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains.

    rate: peak learning rate of Muon, reached after `warmup` steps, then down along a cosine to a
    hundredth; AdamW, for what is no hidden matrix, gets `adamw_share` of it;
    average: decay of the running mean of the weights that the stage keeps, 0 for the last weights.
    """

    name: str
    seed: int
    steps: int
    rate: float
    adamw_share: float
    warmup: int
    processes: int
    average: float
    max_norm: float
    weight_decay: float


class Task(Protocol):
    """What is trained."""

    module: nn.Module

    def is_hidden(self, name: str) -> bool:
        """Whether a matrix or kernel maps features to features, which is Muon's share."""
        ...

    def loss(self, generator: torch.Generator) -> Tensor:
        """The loss of this process's next batch, drawn with `generator`."""
        ...


class Builder(Protocol):
    """Makes the task in each process; a top-level function, since processes are spawned."""

    def __call__(self, settings: Mapping[str, Any]) -> Task:
        """Build the task; torch's seed, which gives its weights, is the same in every process."""
        ...


@dataclass(frozen=True)
class Trained:
    """What a stage's training left: the module's weights, and the CPU seconds of all its processes and runs."""

    weights: dict[str, Tensor]
    cpu_seconds: float


def train(builder: Builder, settings: Mapping[str, Any], plan: Plan, inputs: Sequence[Path] = ()) -> Trained:
    """Train until `plan.steps`, from where a killed run with the same settings, code and `inputs` stood.

    `inputs` are the files and directories that the task reads.

    Raises:
        FloatingPointError: a gradient is not finite; names stage and step.
    """
    die_with_parent()  # DVC, when it is killed, does not end its stage
    state = STATE / f"{plan.name}-{_fingerprint(builder, settings, plan, inputs)}"
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (builder, settings, plan, state, f"file://{meeting}/store")
        multiprocessing.spawn(_worker, arguments, nprocs=plan.processes)  # type: ignore[attr-defined,no-untyped-call]
    content = torch.load(state / "checkpoint.pt", weights_only=True)
    return Trained(content["average"], content["cpu_seconds"])


def forget(name: str) -> None:
    """Remove what a finished stage left to go on from."""
    for state in STATE.glob(f"{name}-*"):
        shutil.rmtree(state)


@torch.no_grad()
def mean_loss(task: Task, weights: Mapping[str, Tensor], seed: int, batches: int = 16) -> float:
    """The task's loss under `weights`, over batches that are the same in every run."""
    task.module.load_state_dict(weights)
    task.module.eval()
    losses = [float(task.loss(generator(seed, "measure", batch))) for batch in range(batches)]
    return sum(losses) / len(losses)


def generator(seed: int, *key: int | str) -> torch.Generator:
    """A generator whose state is a hash of (seed, *key)."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def learning_rate(step: int, plan: Plan) -> float:
    """The learning rate of a step as a share of the peak: linear warm-up, then a cosine down to 1 %."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2


def _worker(
    rank: int, builder: Builder, settings: Mapping[str, Any], plan: Plan, state: Path, meeting: str
) -> None:
    die_with_parent()  # else it would train on beside the next try
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=plan.processes)
    torch.manual_seed(plan.seed)
    task = builder(settings)
    loop = _Loop(task, plan, rank, state)
    loop.run()
    dist.destroy_process_group()


class _Loop:
    """The steps of one process."""

    def __init__(self, task: Task, plan: Plan, rank: int, state: Path) -> None:
        self.task, self.plan, self.rank, self.state = task, plan, rank, state
        self.parameters = [p for p in task.module.parameters() if p.requires_grad]
        self.optimizers = _optimizers(task, plan)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.average = {name: value.detach().clone() for name, value in task.module.state_dict().items()}
        self.first, self.spent = 0, 0.0
        if (state / "checkpoint.pt").exists():
            self._load()

    def run(self) -> None:
        saved, started, losses = time.monotonic(), time.monotonic(), []
        for step in range(self.first, self.plan.steps):
            losses.append(self._step(step))
            if (step + 1) % LOG_EVERY == 0 and self.rank == 0:
                pace = (time.monotonic() - started) / (step + 1 - self.first)
                log.info(
                    "%s %d/%d loss %.5f, %.2f s a step",
                    self.plan.name,
                    step + 1,
                    self.plan.steps,
                    sum(losses[-LOG_EVERY:]) / LOG_EVERY,
                    pace,
                )
            due = torch.tensor(float(time.monotonic() - saved > SAVE_SECONDS or step + 1 == self.plan.steps))
            if step % LOG_EVERY == 0 or step + 1 == self.plan.steps:
                dist.broadcast(due, src=0)  # all processes save together, the CPU seconds are summed
                if due:
                    self._save(step + 1)
                    saved = time.monotonic()

    def _step(self, step: int) -> float:
        draws = generator(self.plan.seed, self.plan.name, step, self.rank)
        loss = self.task.loss(draws)
        loss.backward()  # type: ignore[no-untyped-call]
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.max_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(f"{self.plan.name}, step {step}: the gradient is not finite")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate(step, self.plan)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average_weights(step)
        return float(loss.detach())

    def _average_gradients(self) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        flat /= self.plan.processes
        for parameter, part in zip(
            self.parameters, torch.split(flat, [g.numel() for g in gradients]), strict=True
        ):
            parameter.grad = part.reshape(parameter.shape)

    def _average_weights(self, step: int) -> None:
        decay = min(self.plan.average, (step + 1) / (step + 10)) if self.plan.average else 0.0
        for name, value in self.task.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1 - decay)
            else:
                self.average[name].copy_(value)

    def _save(self, step: int) -> None:
        spent = torch.tensor(self.spent + time.process_time(), dtype=torch.float64)
        dist.all_reduce(spent)
        if self.rank:
            return
        content = {
            "step": step,
            "module": self.task.module.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "cpu_seconds": float(spent),
        }
        partial = self.state / "checkpoint.partial"
        torch.save(content, partial)
        partial.replace(self.state / "checkpoint.pt")

    def _load(self) -> None:
        content = torch.load(self.state / "checkpoint.pt", weights_only=True)
        self.first = content["step"]
        self.spent = content["cpu_seconds"] / self.plan.processes
        self.task.module.load_state_dict(content["module"])
        self.average = content["average"]
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        log.info("%s goes on at step %d", self.plan.name, self.first)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices and convolution kernels (Jordan et al. 2024).

    A kernel counts as a matrix (out, in · height · width). A step's size is that of AdamW (Liu et al. 2025).
    torch.optim.Muon takes matrices alone and iterates in bf16, which took a CPU without bf16
    instructions ten times as long.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": rate, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on the gradients at hand, which are the same in every process."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = orthogonalized_together([self._momentum(p, group["momentum"]) for p in parameters])
            for parameter, update in zip(parameters, updates, strict=True):
                size = 0.2 * math.sqrt(max(update.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * size)

    def _momentum(self, parameter: nn.Parameter, decay: float) -> Tensor:
        """Nesterov's momentum as a matrix."""
        gradient = parameter.grad
        assert gradient is not None
        momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - decay)
        return gradient.lerp(momentum, decay).reshape(len(parameter), -1)


def orthogonalized_together(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Every matrix made orthogonal, each by one of the processes: it is 40 % of the base's step otherwise."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [orthogonalized(matrix) for matrix in matrices]
    rank, world = dist.get_rank(), dist.get_world_size()
    by_size = sorted(range(len(matrices)), key=lambda index: matrices[index].numel())
    own = set(by_size[rank::world])
    parts = [orthogonalized(m) if i in own else torch.zeros_like(m) for i, m in enumerate(matrices)]
    flat = torch.cat([part.reshape(-1) for part in parts])
    dist.all_reduce(flat)  # one process has the matrix, the others add zeros: the same bits as alone
    split = torch.split(flat, [part.numel() for part in parts])
    return [part.reshape(matrix.shape) for part, matrix in zip(split, matrices, strict=True)]


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix` and all singular values near 1: five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.775, 2.0315  # Jordan's: steepest at 0, not exact at 1
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x: Tensor = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _optimizers(task: Task, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest: on these models it learns several times faster."""
    named = [(name, p) for name, p in task.module.named_parameters() if p.requires_grad]
    hidden = [p for name, p in named if p.ndim >= 2 and task.is_hidden(name)]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    rate = plan.rate * plan.adamw_share
    adamw = torch.optim.AdamW(rest, rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True)
    return [Muon(hidden, plan.rate, plan.weight_decay), adamw]


def _fingerprint(builder: Builder, settings: Mapping[str, Any], plan: Plan, inputs: Sequence[Path]) -> str:
    """Settings, plan, the recipe's modules that this stage imports, and the bytes that it reads."""
    digest = hashlib.sha256(json.dumps([dict(settings), vars(plan)], sort_keys=True).encode())
    package = __name__.partition(".")[0]
    modules = {str(module.__file__) for name, module in sys.modules.items() if name.startswith(f"{package}.")}
    code = [
        Path(name) for name in sorted({*modules, inspect.getfile(builder)})
    ]  # the stage's own is __main__
    files = [file for place in inputs for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
    for file in [*code, *files]:
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
