"""The reward of SRPO: an open_clip model with frozen towers, differentiable in the image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as l2_normalize

from srpo_core.errors import ArtifactError
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_safetensors

HPS_FILE: Final = "HPS_v2.1_compressed.pt"
HPS_ARCHITECTURE: Final = "ViT-H-14"
MAX_CACHED_TEXTS: Final = 8192


class OpenClipReward(nn.Module):
    """A `RewardModel` of two frozen open_clip towers; features are L2-normalised, (B, D).

    `scale` is 1, as HPS uses no logit scale: a reward is a cosine in [-1, 1].
    """

    scale: float = 1.0

    def __init__(self, clip: nn.Module, image_size: int, context_length: int) -> None:
        from open_clip import SimpleTokenizer

        super().__init__()
        self.clip = clip.requires_grad_(requires_grad=False).eval()
        self.image_size = image_size
        self._tokenize = SimpleTokenizer(context_length=context_length)
        self._features_of_text: dict[str, Tensor] = {}

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        pixels = normalize(fit(images.float(), self.image_size), CLIP_MEAN, CLIP_STD)
        features: Tensor = self.clip.encode_image(pixels)  # type: ignore[operator]
        return l2_normalize(features, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (B, D) of texts, kept by text since the towers are frozen; no gradients."""
        device = next(self.clip.parameters()).device
        return torch.stack([self._encode_text(text) for text in texts]).to(device)

    @torch.no_grad()
    def _encode_text(self, text: str) -> Tensor:
        # One text at a time: in a batch the last bits would depend on its neighbours, and so on
        # which texts an earlier step or another worker happened to have encoded.
        if text not in self._features_of_text:
            if len(self._features_of_text) >= MAX_CACHED_TEXTS:
                self._features_of_text.pop(next(iter(self._features_of_text)))
            tokens = self._tokenize([text]).to(next(self.clip.parameters()).device)
            features = self.clip.encode_text(tokens)  # type: ignore[operator]
            self._features_of_text[text] = l2_normalize(features, dim=-1)[0]
        return self._features_of_text[text]


def load_open_clip(path: Path) -> OpenClipReward:
    """Load a reward from a directory in one of two forms; it computes in fp32.

    Either one open_clip configuration `NAME.json` beside `NAME.safetensors`, or the published
    HPSv2.1 weights, `HPS_v2.1_compressed.pt`.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
    """
    configs = sorted(path.glob("*.json")) if path.is_dir() else []
    if (path / HPS_FILE).is_file() and not configs:
        from open_clip import get_model_config

        return load_hps(path / HPS_FILE, get_model_config(HPS_ARCHITECTURE))
    if len(configs) != 1:
        raise ArtifactError(
            f"{path} must hold one open_clip configuration NAME.json beside NAME.safetensors, or {HPS_FILE}; "
            f"found {len(configs)} configurations: check reward.path in params.yaml"
        )
    weights = configs[0].with_suffix(".safetensors")
    return _assemble(read_config(configs[0]), configs[0], read_safetensors(weights), weights)


def load_hps(path: Path, config: Mapping[str, Any]) -> OpenClipReward:
    """Load weights as HPSv2 publishes them: a pickled {"state_dict": ...} of an open_clip model.

    `config` is the open_clip configuration of the architecture. Raises `ArtifactError`.
    """
    from pickle import UnpicklingError

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, OSError) as error:
        raise damaged(path, error) from None
    return _assemble(config, path, tensors, path)


def _assemble(
    config: Mapping[str, Any], config_path: Path, tensors: Mapping[str, Tensor], weights_path: Path
) -> OpenClipReward:
    """Build the towers of `config` and fill them with `tensors`; the paths are for the errors."""
    from open_clip import CLIP

    try:
        clip = CLIP(**config)
        image_size = int(config["vision_cfg"]["image_size"])
        context_length = int(config["text_cfg"]["context_length"])
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(config_path, f"not a configuration of open_clip's CLIP: {error!r}") from None
    load_strictly(clip, tensors, weights_path)
    return OpenClipReward(clip.float(), image_size, context_length)
