"""The reward of SRPO: an open_clip model with frozen towers, differentiable with respect to the image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.functional import normalize as l2_normalize

from srpo_core.errors import ArtifactError
from srpo_core.scorers.cosine import cosine_score
from srpo_core.scorers.entry import ScorerEntry, ScorerFiles
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize
from srpo_core.scorers.text_memory import TextMemory
from srpo_core.scorers.vit_forward import class_feature, is_plain
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_pickle, read_safetensors

PUBLISHED_CONFIG: Final = "open_clip_config.json"
PUBLISHED_WEIGHTS: Final = "open_clip_pytorch_model.bin"


class OpenClipReward(nn.Module):
    """A reward of two frozen open_clip towers (`TwoTowers`); features are L2-normalised, (B, D).

    `scale` is 1 because HPS uses no logit scale: a reward is a cosine in [-1, 1].
    """

    scale: float = 1.0

    def __init__(self, clip: nn.Module, image_size: int, context_length: int) -> None:
        from open_clip import SimpleTokenizer

        super().__init__()
        self.clip = clip.requires_grad_(requires_grad=False).eval()
        self.image_size = image_size
        self._tokenize = SimpleTokenizer(context_length=context_length)
        self._memory = TextMemory()

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute the cosines of images and texts times `scale`; see `RewardModel.score`."""
        return cosine_score(self, images, texts)

    def encode_images(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        pixels = normalize(fit(images.float(), self.image_size), CLIP_MEAN, CLIP_STD)
        visual = self.clip.visual
        features = class_feature(visual, pixels) if is_plain(visual) else visual(pixels)  # type: ignore[operator]
        # also under autocast: a relative reward is a small difference of cosines, so the length must not be rounded
        return l2_normalize(features.float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Compute features (B, D) of texts, without gradients; cached by text, since the towers are frozen."""
        return self._memory.recall(texts, self._encode_text, next(self.clip.parameters()).device)

    def _encode_text(self, text: str) -> Tensor:
        tokens = self._tokenize([text]).to(next(self.clip.parameters()).device)
        features: Tensor = self.clip.encode_text(tokens)  # type: ignore[operator]
        return l2_normalize(features, dim=-1)[0]


def load_open_clip(path: Path) -> OpenClipReward:
    """Load a reward, in fp32, from one open_clip configuration `NAME.json` and `NAME.safetensors` beside it.

    A directory as open_clip publishes it works, too: `open_clip_config.json` and `open_clip_pytorch_model.bin`.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
        ConfigError: the package open_clip is not installed.
    """
    weights = open_clip_files(path).weights
    file, config = _read_config(path)
    tensors = read_pickle(weights) if weights.name == PUBLISHED_WEIGHTS else read_safetensors(weights)
    return load_towers(config, file, tensors, weights)


def build_open_clip(path: Path) -> OpenClipReward:
    """Build a reward by the configuration in a directory, with random weights on torch's default device.

    Raises:
        ArtifactError: the configuration is missing or damaged.
        ConfigError: the package open_clip is not installed.
    """
    file, config = _read_config(path)
    return build_towers(config, file)


def load_towers(
    config: Mapping[str, Any], config_path: Path, tensors: Mapping[str, Tensor], weights_path: Path
) -> OpenClipReward:
    """Build the towers of `config` and load `tensors` into them; errors name the paths."""
    reward = build_towers(config, config_path)
    load_strictly(reward.clip, tensors, weights_path)
    return reward


def build_towers(config: Mapping[str, Any], config_path: Path) -> OpenClipReward:
    """Build the towers of `config`, in fp32, with random weights; errors name `config_path`."""
    require_package("open_clip", f"the scorer in {config_path.parent}")
    from open_clip import CLIP

    try:
        clip = CLIP(**config)
        image_size = int(config["vision_cfg"]["image_size"])
        context_length = int(config["text_cfg"]["context_length"])
    except (TypeError, KeyError, ValueError) as error:
        raise damaged(config_path, f"not a configuration of open_clip's CLIP: {error!r}") from None
    return OpenClipReward(clip.float(), image_size, context_length)


def open_clip_files(path: Path) -> ScorerFiles:
    """Return the only configuration in a directory and its weights. Raises `ArtifactError` if it is not the only one."""
    files = sorted(path.glob("*.json")) if path.is_dir() else []
    if len(files) != 1:
        raise ArtifactError(
            f"{path} must contain one open_clip configuration NAME.json, with NAME.safetensors beside it, but "
            f"contains {len(files)} configurations: check its path in params.yaml"
        )
    (config,) = files
    published = path / PUBLISHED_WEIGHTS
    is_published = config.name == PUBLISHED_CONFIG and published.exists()
    return ScorerFiles(config, published if is_published else config.with_suffix(".safetensors"))


def _read_config(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """Read the configuration of a directory; a published one has it under `model_cfg`."""
    file = open_clip_files(path).config
    assert file is not None
    config = read_config(file)
    return file, config.get("model_cfg", config) if file.name == PUBLISHED_CONFIG else config


OPEN_CLIP: Final = ScorerEntry(
    load_open_clip,
    differentiable=True,
    range=(-1, 1),
    licence="MIT",
    source="open_clip, any configuration with a text and a vision tower",
    build=build_open_clip,
    files=open_clip_files,
)
