"""The score of a reward with two towers: the cosine of image and text."""

from collections.abc import Sequence

from torch import Tensor

from srpo_core.protocols import TwoTowers


def cosine_score(towers: TwoTowers, images: Tensor, texts: Sequence[str]) -> Tensor:
    """Return the cosines of images (B, 3, H, W) and texts (n·B) times the scale, (n·B,); see `RewardModel.score`."""
    seen = towers.encode_images(images)
    read = towers.encode_texts(texts).view(-1, *seen.shape)
    return towers.scale * (seen * read).sum(dim=-1).flatten()
