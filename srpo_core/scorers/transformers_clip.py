"""The two towers of a transformers CLIPModel, the form in which PickScore and the CLIP score are published.

A directory contains `config.json` and `model.safetensors`. All CLIP models share one tokenizer, which comes with
open_clip. Images are resized as tensors, as in SRPO. The published processors round them to 8 bits after resizing,
so their scores differ slightly.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as l2_normalize

from srpo_core.scorers.cosine import cosine_score
from srpo_core.scorers.entry import ScorerFiles
from srpo_core.scorers.packages import require_package
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize
from srpo_core.scorers.text_memory import TextMemory
from srpo_core.scorers.weights import damaged, load_strictly, read_config, read_safetensors

# Position indices, which transformers before 4.31 saved among the weights.
POSITIONS: Final = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


class TransformersClip(nn.Module):
    """A reward of the two frozen towers (`TwoTowers`); features are L2-normalised, (B, D)."""

    def __init__(self, clip: nn.Module, image_size: int, context_length: int, scale: float) -> None:
        super().__init__()
        self.clip = clip.requires_grad_(requires_grad=False).eval()
        self.scale = scale
        self.image_size = image_size
        self._tokenize = _clip_tokenizer(context_length)
        self._memory = TextMemory()

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Compute the cosines of images and texts times `scale`; see `RewardModel.score`."""
        return cosine_score(self, images, texts)

    def encode_images(self, images: Tensor) -> Tensor:
        """Compute features (B, D) of images (B, 3, H, W) in [0, 1]; gradients flow to the images."""
        pixels = normalize(fit(images.float(), self.image_size), CLIP_MEAN, CLIP_STD)
        features: Tensor = self.clip.get_image_features(pixels).pooler_output  # type: ignore[operator]
        # also under autocast: a relative reward is a small difference of cosines, so the length must not be rounded
        return l2_normalize(features.float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Compute features (B, D) of texts, without gradients; cached by text, since the towers are frozen."""
        return self._memory.recall(texts, self._encode_text, next(self.clip.parameters()).device)

    def _encode_text(self, text: str) -> Tensor:
        tokens = torch.tensor([self._tokenize(text).input_ids], device=next(self.clip.parameters()).device)
        features = self.clip.get_text_features(tokens).pooler_output  # type: ignore[operator]
        return l2_normalize(features, dim=-1)[0]


def clip_files(path: Path) -> ScorerFiles:
    """Return the files of a CLIPModel in its directory."""
    return ScorerFiles(path / "config.json", path / "model.safetensors")


def load_towers(path: Path, scale: Callable[[Any], float]) -> TransformersClip:
    """Load both towers from a directory, in fp32; `scale` reads the score's scale from the CLIPModel.

    Raises:
        ArtifactError: a file is missing, damaged or of another architecture.
        ConfigError: the package transformers or open_clip, which has the vocabulary, is not installed.
    """
    clip, weights = _new_clip(path), clip_files(path).weights
    tensors = {name: tensor for name, tensor in read_safetensors(weights).items() if name not in POSITIONS}
    load_strictly(clip, tensors, weights)
    return _towers(clip, scale(clip))


def build_towers(path: Path) -> TransformersClip:
    """Build both towers of a directory's configuration, with random weights on torch's default device.

    Only shapes are meant to be used: the score's scale is a weight, so `scale` is 1. Raises as `load_towers`.
    """
    return _towers(_new_clip(path), 1.0)


def _towers(clip: Any, scale: float) -> TransformersClip:
    sizes = clip.config.vision_config.image_size, clip.config.text_config.max_position_embeddings
    return TransformersClip(clip.float(), *sizes, scale)


def _new_clip(path: Path) -> Any:
    """Make a transformers CLIPModel by the configuration in a directory; its weights are random."""
    for package in ("transformers", "open_clip"):
        require_package(package, f"the scorer in {path}")
    config_path = clip_files(path).config
    assert config_path is not None
    return _make_clip(read_config(config_path), config_path)


def _make_clip(config: Mapping[str, Any], path: Path) -> Any:
    """Make a transformers CLIPModel by `config`, which was read from `path`; its weights are random."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPConfig, CLIPModel

    if config.get("model_type") != "clip":
        raise damaged(path, f"model_type is {config.get('model_type')!r}, not 'clip'")
    try:
        return CLIPModel(CLIPConfig.from_dict(dict(config)))
    except (StrictDataclassError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise damaged(path, f"not a configuration of transformers' CLIPModel: {error!r}") from None


def _clip_tokenizer(context_length: int) -> Any:
    """Make CLIP's tokenizer with transformers' text cleaning, which, unlike open_clip's, keeps HTML entities."""
    from functools import partial

    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    vocabulary = SimpleTokenizer()
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {vocabulary.sot_token_id: start, vocabulary.eot_token_id: end}
    tokenizer = CLIPTokenizer(
        vocab={names.get(index, token): index for token, index in vocabulary.encoder.items()},
        merges=list(vocabulary.bpe_ranks),
    )
    return partial(tokenizer, truncation=True, max_length=context_length)
