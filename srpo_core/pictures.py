"""Pictures for selection and evaluation: drawn from noise keyed by prompt and seed, then measured.

Two models that draw the same `PictureSet` start from the same noise, so their pictures are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Final

import torch
from torch import Tensor

from srpo_core.algorithm.noise import keyed_noise
from srpo_core.config import DrawSettings
from srpo_core.errors import DivergenceError
from srpo_core.protocols import BaseModel, Condition
from srpo_core.scorers.metrics import MetricContext, finish, measure

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

    def part(self, start: int, stop: int) -> "PictureSet":
        """The same pictures of some of the prompts, those at start … stop-1."""
        rows = slice(start, min(stop, len(self.prompts)))
        return replace(
            self,
            prompts=self.prompts[rows],
            styles=self.styles[rows],
            condition=self.condition[rows],
        )

    def places(self) -> list[tuple[int, int]]:
        """(index of the prompt, number of the seed) of every picture, prompt after prompt."""
        return [(index, k) for index in range(len(self.prompts)) for k in range(self.seeds_per_prompt)]

    def noise(self, index: int, k: int, shape: tuple[int, int]) -> Tensor:
        """The noise of shape (S, C) from which picture `k` of prompt `index` is drawn."""
        return keyed_noise(shape, self.seed, self.purpose, self.prompts[index], k)


@dataclass(frozen=True)
class Drawn:
    """The pictures of a set in its order: pixels (P, 3, H, W) in 8 bits, as a picture is stored and measured.

    found: by metric, what `measure` found, (P,), or (P, D) of a metric over all pictures.
    """

    pixels: Tensor
    found: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredPicture:
    """A picture with one figure per metric; `seed` counts the pictures of its prompt."""

    prompt: str
    style: str
    seed: int
    pixels: Tensor
    figures: dict[str, float]


def draw_set(
    base: BaseModel,
    name: str,
    pictures: PictureSet,
    *,
    draw: DrawSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> Drawn:
    """Draw a set of pictures by the model called `name` and measure them.

    Raises:
        DivergenceError: the model draws something that is not a finite number.
    """
    with base.autocast(enabled=draw.autocast):
        pixels = torch.cat(list(_draw(base, name, pictures, draw)))
    found: dict[str, list[Tensor]] = {metric: [] for metric in metrics}
    seeds = pictures.seeds_per_prompt
    for index, prompt in enumerate(pictures.prompts if metrics else ()):
        images = pixels[index * seeds : (index + 1) * seeds].float() / WHITE
        for metric, values in measure(metrics, images, prompt, context).items():
            found[metric].append(values)
    return Drawn(pixels, {metric: torch.cat(values) for metric, values in found.items()})


def draw_and_measure(
    base: BaseModel,
    name: str,
    pictures: PictureSet,
    *,
    draw: DrawSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> list[MeasuredPicture]:
    """Draw and measure a set of pictures; one `MeasuredPicture` for each, in the set's order. See `draw_set`."""
    drawn = draw_set(base, name, pictures, draw=draw, metrics=metrics, context=context)
    figures = {metric: finish(metric, found, context).tolist() for metric, found in drawn.found.items()}
    return [
        MeasuredPicture(
            pictures.prompts[index],
            pictures.styles[index],
            k,
            drawn.pixels[row],
            {metric: values[row] for metric, values in figures.items()},
        )
        for row, (index, k) in enumerate(pictures.places())
    ]


def mean_figures(pictures: Sequence[MeasuredPicture], metrics: Sequence[str]) -> dict[str, float]:
    """Mean of each metric over the pictures."""
    return {name: sum(picture.figures[name] for picture in pictures) / len(pictures) for name in metrics}


def to_png(pixels: Tensor) -> bytes:
    """Encode 8-bit pixels (3, H, W) as PNG."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return file.getvalue()


def _draw(base: BaseModel, name: str, pictures: PictureSet, draw: DrawSettings) -> Iterator[Tensor]:
    """Pictures of the set in 8 bits, batch after batch."""
    places = pictures.places()
    device = _device(base)
    for start in range(0, len(places), draw.batch_size):
        batch = places[start : start + draw.batch_size]
        noise = torch.stack([pictures.noise(index, k, base.latent_shape) for index, k in batch])
        condition = pictures.condition[[index for index, _ in batch]].to(device)
        images = base.draw(condition, noise.to(device), steps=draw.steps, guidance=draw.guidance)
        _require_finite(images, [pictures.prompts[index] for index, _ in batch], name)
        yield _to_8_bits(images)


def _device(base: BaseModel) -> torch.device:
    return next(base.transformer.parameters()).device


def _to_8_bits(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * WHITE).round().to(torch.uint8).cpu().contiguous()


def _require_finite(images: Tensor, prompts: Sequence[str], name: str) -> None:
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    if not all(finite):
        raise DivergenceError(
            f"{name} draws NaN or infinity for prompt {prompts[finite.index(False)]!r}: "
            "lower train.optimizer.learning_rate or train fewer steps"
        )
