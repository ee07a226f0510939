"""Pictures for selection and evaluation: drawn from noise keyed by prompt and seed, then measured.

Two models that draw the same `PictureSet` start from the same noise, so their pictures are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from operator import attrgetter
from typing import Final

import torch
from torch import Tensor

from srpo_core.algorithm.noise import keyed_noise
from srpo_core.config import DrawSettings
from srpo_core.errors import DivergenceError
from srpo_core.progress import with_progress
from srpo_core.protocols import BaseModel, Condition
from srpo_core.scorers.metrics import MetricContext, measure

WHITE: Final = 255


@dataclass(frozen=True)
class PictureSet:
    """What is drawn: prompts with their styles and embeddings, and how many seeds of each.

    The noise of a picture is keyed by (seed, purpose, prompt, number of the picture).
    """

    purpose: str
    prompts: Sequence[str]
    styles: Sequence[str]
    condition: Condition
    seeds_per_prompt: int
    seed: int

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.prompts) * self.seeds_per_prompt

    def places(self) -> list[tuple[int, int]]:
        """(index of the prompt, number of the seed) of every picture, prompt after prompt."""
        return [(index, k) for index in range(len(self.prompts)) for k in range(self.seeds_per_prompt)]

    def noise(self, index: int, k: int, shape: tuple[int, int]) -> Tensor:
        """The noise of shape (S, C) from which picture `k` of prompt `index` is drawn."""
        return keyed_noise(shape, self.seed, self.purpose, self.prompts[index], k)


@dataclass(frozen=True)
class Picture:
    """Pixels (3, H, W) in 8 bits: as a picture is stored, it is measured."""

    index: int
    k: int
    pixels: Tensor


@dataclass(frozen=True)
class MeasuredPicture:
    """A picture with one figure per metric; `seed` counts the pictures of its prompt."""

    prompt: str
    style: str
    seed: int
    pixels: Tensor
    figures: dict[str, float]


def draw_and_measure(
    base: BaseModel,
    name: str,
    pictures: PictureSet,
    *,
    draw: DrawSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> list[MeasuredPicture]:
    """Draw a set of pictures by the model called `name` and measure them, in the set's order.

    Raises:
        DivergenceError: the model draws something that is not a finite number.
    """
    drawn = with_progress(_draw(base, name, pictures, draw), f"draw {name}", len(pictures))
    measured: list[MeasuredPicture] = []
    for index, group in groupby(drawn, key=attrgetter("index")):
        measured.extend(
            _measure(list(group), pictures.prompts[index], pictures.styles[index], metrics, context)
        )
    return measured


def mean_figures(pictures: Sequence[MeasuredPicture], metrics: Sequence[str]) -> dict[str, float]:
    """Mean of each metric over the pictures."""
    return {name: sum(picture.figures[name] for picture in pictures) / len(pictures) for name in metrics}


def to_png(pixels: Tensor) -> bytes:
    """Encode 8-bit pixels (3, H, W) as PNG."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return file.getvalue()


def _draw(base: BaseModel, name: str, pictures: PictureSet, draw: DrawSettings) -> Iterator[Picture]:
    places = pictures.places()
    for start in range(0, len(places), draw.batch_size):
        batch = places[start : start + draw.batch_size]
        noise = torch.stack([pictures.noise(index, k, base.latent_shape) for index, k in batch])
        condition = pictures.condition[[index for index, _ in batch]]
        images = base.draw(
            condition, noise.to(condition.pooled.device), steps=draw.steps, guidance=draw.guidance
        )
        _require_finite(images, [pictures.prompts[index] for index, _ in batch], name)
        for (index, k), image in zip(batch, _to_8_bits(images), strict=True):
            yield Picture(index, k, image)


def _measure(
    same_prompt: Sequence[Picture], prompt: str, style: str, metrics: Sequence[str], context: MetricContext
) -> Iterator[MeasuredPicture]:
    images = torch.stack([picture.pixels for picture in same_prompt]).float() / WHITE
    figures = measure(metrics, images, prompt, context)
    for row, picture in enumerate(same_prompt):
        own = {metric: values[row] for metric, values in figures.items()}
        yield MeasuredPicture(prompt, style, picture.k, picture.pixels, own)


def _to_8_bits(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * WHITE).round().to(torch.uint8).cpu()


def _require_finite(images: Tensor, prompts: Sequence[str], name: str) -> None:
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    if not all(finite):
        raise DivergenceError(
            f"{name} draws NaN or infinity for prompt {prompts[finite.index(False)]!r}: "
            "lower train.optimizer.learning_rate or train fewer steps"
        )
