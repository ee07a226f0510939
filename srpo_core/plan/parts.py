"""The models of a run on the meta device: architectures without weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_core.config import Settings
from srpo_core.errors import ArtifactError
from srpo_core.protocols import Condition
from srpo_core.scorers import build_rewards
from srpo_core.weights.models_lock import read_lock


@dataclass(frozen=True)
class MetaParts:
    """Base and reward on the meta device, and the condition of one image."""

    model: Any
    reward: Any
    reward_parameters: int
    condition: Condition


def meta_parts(settings: Settings) -> MetaParts:
    """Build the base and the reward of a run, prepared as for training.

    The base's configuration is read from the settings' path, or from models.lock if the weights are not downloaded yet.

    Raises:
        ArtifactError: neither place has the configuration.
        ConfigError: the reward is not differentiable, or its package is not installed.
    """
    import torch

    from srpo_core.models import meta_trainable

    path = settings.model.path
    model, condition = meta_trainable(
        settings.model, settings.train, transformer=_config(path, "transformer"), vae=_config(path, "vae")
    )
    with torch.device("meta"):
        reward = build_rewards(settings.rewards)
    parameters = sum(p.numel() for p in reward.parameters())  # type: ignore[attr-defined]
    return MetaParts(model, reward, parameters, condition)


def _config(path: str, part: str) -> Mapping[str, Any]:
    import json

    file = Path(path) / part / "config.json"
    if file.is_file():
        config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config
    locked = read_lock().get(path)
    if locked is None or part not in locked.architecture:
        raise ArtifactError(
            f"{file} is missing, and models.lock has no architecture of {path}: run 'srpo fetch', or check model.path"
        )
    return locked.architecture[part]
