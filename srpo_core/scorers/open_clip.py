"""The reward of SRPO: an open_clip model with frozen towers, differentiable in the image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.functional import normalize as l2_normalize

from srpo_core.errors import ArtifactError
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize
from srpo_core.scorers.text_memory import TextMemory
from srpo_core.scorers.vit_forward import class_feature, is_plain
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_pickle, read_safetensors

PUBLISHED_CONFIG: Final = "open_clip_config.json"
PUBLISHED_WEIGHTS: Final = "open_clip_pytorch_model.bin"


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
        self._memory = TextMemory()

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        pixels = normalize(fit(images.float(), self.image_size), CLIP_MEAN, CLIP_STD)
        visual = self.clip.visual
        features = class_feature(visual, pixels) if is_plain(visual) else visual(pixels)  # type: ignore[operator]
        return l2_normalize(features, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (B, D) of texts, kept by text since the towers are frozen; no gradients."""
        return self._memory.recall(texts, self._encode_text, next(self.clip.parameters()).device)

    def _encode_text(self, text: str) -> Tensor:
        tokens = self._tokenize([text]).to(next(self.clip.parameters()).device)
        features: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return l2_normalize(features, dim=-1)[0]


def load_open_clip(path: Path) -> OpenClipReward:
    """Load a reward from one open_clip configuration `NAME.json` beside `NAME.safetensors`; it computes in fp32.

    Or from a directory as open_clip publishes it: `open_clip_config.json` beside `open_clip_pytorch_model.bin`.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
        ConfigError: the package open_clip is not installed.
    """
    configs = sorted(path.glob("*.json")) if path.is_dir() else []
    if len(configs) != 1:
        raise ArtifactError(
            f"{path} must hold one open_clip configuration NAME.json beside NAME.safetensors; "
            f"found {len(configs)} configurations: check reward.path in params.yaml"
        )
    config = read_config(configs[0])
    published = path / PUBLISHED_WEIGHTS
    if configs[0].name == PUBLISHED_CONFIG and published.exists():
        return assemble(config.get("model_cfg", {}), configs[0], read_pickle(published), published)
    weights = configs[0].with_suffix(".safetensors")
    return assemble(config, configs[0], read_safetensors(weights), weights)


def assemble(
    config: Mapping[str, Any], config_path: Path, tensors: Mapping[str, Tensor], weights_path: Path
) -> OpenClipReward:
    """Build the towers of `config` and fill them with `tensors`; the paths are for the errors."""
    require_package("open_clip", f"the scorer in {weights_path.parent}")
    from open_clip import CLIP

    try:
        clip = CLIP(**config)
        image_size = int(config["vision_cfg"]["image_size"])
        context_length = int(config["text_cfg"]["context_length"])
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(config_path, f"not a configuration of open_clip's CLIP: {error!r}") from None
    load_strictly(clip, tensors, weights_path)
    return OpenClipReward(clip.float(), image_size, context_length)
