"""Measure the CPU seconds of a step by phase."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch


@dataclass
class Phases:
    """The CPU seconds of each phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, owner: Any, attribute: str, phase: str | Callable[[], str | None]) -> None:
        """Wrap a function of `owner` to add its CPU seconds to `phase`, unless that is None."""
        function = getattr(owner, attribute)

        @wraps(function)
        def timed(*args: Any, **keywords: Any) -> Any:
            name = phase if isinstance(phase, str) else phase()
            if name is None:
                return function(*args, **keywords)
            start = time.process_time()
            try:
                return function(*args, **keywords)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start

        setattr(owner, attribute, timed)

    def time_model(self, model: Any, reward: Any) -> None:
        """Time the calls of a base model and a reward in training."""
        self.time(model, "rollout_velocity", "rollout")
        self.time(model, "velocity", lambda: "forward" if torch.is_grad_enabled() else None)
        self.time(model, "decode", "decode")
        self.time(reward, "encode_images", "reward")
        self.time(reward, "encode_texts", "reward")
        self.time(torch.Tensor, "backward", "backward")

    def time_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Time the update, including norm and clipping of gradients, in one call or two."""
        for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
            self.time(torch.nn.utils, name, "optimizer")
        self.time(optimizer, "step", "optimizer")
