"""The models of a run on the meta device: their configuration, without a weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.config import Settings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.protocols import Condition
from srpo_core.weights.models_lock import read_lock


@dataclass(frozen=True)
class MetaParts:
    """Base and reward on the meta device, and the condition of one image."""

    model: Any
    reward: Any
    reward_parameters: int
    condition: Condition


def meta_parts(settings: Settings) -> MetaParts:
    """Build what a run of these settings trains and trains against, prepared as for training.

    A configuration is read from the settings' path, or from models.lock if the weights are not here yet.

    Raises:
        ArtifactError: there is no configuration in either place.
        ConfigError: the reward is of a kind whose architecture is not known here.
    """
    import torch

    from srpo_core.models import meta_trainable

    path = settings.model.path
    model, condition = meta_trainable(
        settings.model, settings.train, transformer=_config(path, "transformer"), vae=_config(path, "vae")
    )
    with torch.device("meta"):
        reward = _reward(settings)
    parameters = sum(p.numel() for p in reward.parameters())
    return MetaParts(model, reward, parameters, condition)


def _config(path: str, part: str) -> Mapping[str, Any]:
    import json

    file = Path(path) / part / "config.json"
    if file.is_file():
        config: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return config
    locked = read_lock().get(path)
    if locked is None or part not in locked.architecture:
        raise ArtifactError(f"{file} is missing, and models.lock knows no architecture of {path}")
    return locked.architecture[part]


def _reward(settings: Settings) -> Any:
    scorer = settings.reward.scorer
    if scorer not in REWARDS:
        raise ConfigError(f"reward.scorer {scorer!r} is not counted yet: known are {', '.join(REWARDS)}")
    return REWARDS[scorer](Path(settings.reward.path))


def _open_clip(path: Path) -> Any:
    from open_clip import CLIP

    from srpo_core.scorers.open_clip import OpenClipReward
    from srpo_core.scorers.weights import read_config

    (file,) = path.glob("*.json")
    config = read_config(file)
    return OpenClipReward(
        CLIP(**config), config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    )


def _hps_v2(_: Path) -> Any:
    from open_clip import CLIP, get_model_config

    from srpo_core.scorers.hps_v2 import ARCHITECTURE
    from srpo_core.scorers.open_clip import OpenClipReward

    config = get_model_config(ARCHITECTURE)
    return OpenClipReward(
        CLIP(**config), config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    )


REWARDS: Final[Mapping[str, Callable[[Path], Any]]] = MappingProxyType(
    {"hps_v2": _hps_v2, "open_clip": _open_clip}
)
