"""The models of a run on the meta device: architectures without weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.config import ModelSettings, Settings
from srpo_core.errors import ArtifactError
from srpo_core.protocols import Condition
from srpo_core.scorers import build_rewards
from srpo_core.weights.models_lock import read_lock

TEXT_ENCODER: Final = "text_encoder"  # the parts of a diffusers pipeline that encode prompts start with this


@dataclass(frozen=True)
class MetaParts:
    """Base, reward and text encoders on the meta device, and the condition of one image."""

    model: Any
    reward: Any
    encoders: Sequence["MetaEncoder"]
    condition: Condition


@dataclass(frozen=True)
class MetaEncoder:
    """A text encoder on the meta device, and the number of tokens of a prompt."""

    module: Any
    tokens: int

    def encode(self, num_prompts: int) -> None:
        """Call the encoder for a batch of prompts."""
        import torch

        self.module(input_ids=torch.zeros(num_prompts, self.tokens, dtype=torch.long, device="meta"))


def meta_parts(settings: Settings) -> MetaParts:
    """Build base, reward and text encoders of a run, prepared as for training.

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
    return MetaParts(model, reward, meta_encoders(settings.model), condition)


def meta_encoders(model: ModelSettings) -> list[MetaEncoder]:
    """Build every text encoder of the base on the meta device; CLIP's has its own number of tokens, T5's that of the settings."""
    import torch
    import transformers

    found = []
    for part in _text_encoders(model.path):
        values = dict(_config(model.path, part))
        kind = getattr(transformers, values["architectures"][0])
        config = kind.config_class.from_dict(values)
        with torch.device("meta"):
            module = kind(config).eval()
        tokens = getattr(config, "max_position_embeddings", None) or model.max_sequence_length
        found.append(MetaEncoder(module, tokens))
    return found


def _text_encoders(path: str) -> list[str]:
    """List the parts of a pipeline directory that encode prompts, or those in models.lock."""
    if Path(path).is_dir():
        return sorted(file.parent.name for file in Path(path).glob(f"{TEXT_ENCODER}*/config.json"))
    locked = read_lock().get(path)
    parts = () if locked is None else locked.architecture
    return sorted(part for part in parts if part.startswith(TEXT_ENCODER))


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
