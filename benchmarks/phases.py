"""Measure the seconds of a step by phase: CPU seconds, wall seconds, or the seconds of a GPU between two events."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Self

import torch


def _until(start: float, end: float) -> float:
    return end - start


@dataclass
class Phases:
    """The seconds of each phase, until `clear`.

    now: reads a clock; between: seconds from one reading to a later one. As a context manager it restores the wrapped
    functions.
    """

    now: Callable[[], Any] = time.process_time
    between: Callable[[Any, Any], float] = _until
    _spans: list[tuple[str, Any, Any]] = field(default_factory=list, init=False)
    _wrapped: list[tuple[Any, str, Any]] = field(default_factory=list, init=False)

    @classmethod
    def on(cls, device: torch.device) -> Self:
        """Return phases by the clock of a device: events on a GPU, wall seconds on a CPU."""
        return cls(_event, _between_events) if device.type == "cuda" else cls(time.perf_counter)

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds by phase, in the order in which the phases ended first."""
        totals: dict[str, float] = {}
        for name, start, end in self._spans:
            totals[name] = totals.get(name, 0.0) + self.between(start, end)
        return totals

    def clear(self) -> None:
        """Forget what was measured."""
        self._spans.clear()

    def __enter__(self) -> Self:
        """Return the phases themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the wrapped functions, the last one first."""
        while self._wrapped:
            owner, attribute, function = self._wrapped.pop()
            setattr(owner, attribute, function)

    def time(self, owner: Any, attribute: str, phase: str | Callable[[], str | None]) -> None:
        """Wrap a function of `owner` to add its seconds to `phase`, unless that is None."""
        function = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **keywords: Any) -> Any:
            name = phase if isinstance(phase, str) else phase()
            if name is None:
                return function(*args, **keywords)
            start = self.now()
            try:
                return function(*args, **keywords)
            finally:
                self._spans.append((name, start, self.now()))

        self._wrapped.append((owner, attribute, function))
        setattr(owner, attribute, timed)

    def time_entering(self, owner: Any, attribute: str, phase: str) -> None:
        """Wrap a function of `owner` that returns a context manager, to add the seconds of entering it to `phase`."""
        function = getattr(owner, attribute)

        @wraps(function)
        @contextmanager
        def timed(*args: Any, **keywords: Any) -> Iterator[Any]:
            start = self.now()
            with function(*args, **keywords) as entered:
                self._spans.append((phase, start, self.now()))
                yield entered

        self._wrapped.append((owner, attribute, function))
        setattr(owner, attribute, timed)

    def time_model(self, model: Any, reward: Any) -> None:
        """Time the calls of a base model and a reward in training."""
        self.time(model, "velocity", lambda: "forward" if torch.is_grad_enabled() else "rollout")
        self.time_entering(model, "prepared", "rollout")
        self.time(model, "decode", "decode")
        self.time(reward, "score", "reward")
        self.time(torch.Tensor, "backward", "backward")

    def time_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Time the update, including norm and clipping of gradients, in one call or two."""
        for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
            self.time(torch.nn.utils, name, "optimizer")
        self.time(optimizer, "step", "optimizer")


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between_events(start: torch.cuda.Event, end: torch.cuda.Event) -> float:
    end.synchronize()
    return start.elapsed_time(end) / 1000
