"""Images for selection and evaluation: drawn from noise keyed by prompt and seed, then measured.

Two models that draw the same `ImageSet` start from the same noise, so their images are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Final

import torch
from torch import Tensor

from srpo_core.config import GenerateSettings
from srpo_core.errors import DivergenceError
from srpo_core.protocols import BaseModel, Condition
from srpo_core.randomness import keyed_noise
from srpo_core.scorers.metrics import MetricContext, finish, measure

WHITE: Final = 255


@dataclass(frozen=True)
class ImageSet:
    """What is drawn: prompts with their styles and embeddings, and how many seeds of each.

    The noise of an image is keyed by (seed, purpose, prompt, number of the image).
    """

    purpose: str
    prompts: Sequence[str]
    styles: Sequence[str]
    condition: Condition
    seeds_per_prompt: int
    seed: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.prompts) * self.seeds_per_prompt

    def part(self, start: int, stop: int) -> "ImageSet":
        """The same images of some of the prompts, those at start … stop-1."""
        rows = slice(start, min(stop, len(self.prompts)))
        return replace(
            self,
            prompts=self.prompts[rows],
            styles=self.styles[rows],
            condition=self.condition[rows],
        )

    def places(self) -> list[tuple[int, int]]:
        """(index of the prompt, number of the seed) of every image, prompt after prompt."""
        return [(index, k) for index in range(len(self.prompts)) for k in range(self.seeds_per_prompt)]

    def noise(self, index: int, k: int, shape: tuple[int, int]) -> Tensor:
        """The noise of shape (S, C) from which image `k` of prompt `index` is drawn."""
        return keyed_noise(shape, self.seed, self.purpose, self.prompts[index], k)


@dataclass(frozen=True)
class GeneratedImages:
    """The images of a set in its order: pixels (P, 3, H, W) in 8 bits, as an image is stored and measured.

    found: by metric, what `measure` found, (P,), or (P, D) of a metric over all images.
    """

    pixels: Tensor
    found: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredImage:
    """An image with one figure per metric; `seed` counts the images of its prompt."""

    prompt: str
    style: str
    seed: int
    pixels: Tensor
    figures: dict[str, float]


def generate_set(
    base: BaseModel,
    name: str,
    image_set: ImageSet,
    *,
    generate: GenerateSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> GeneratedImages:
    """Draw a set of images by the model called `name` and measure them.

    Raises:
        DivergenceError: the model draws something that is not a finite number.
    """
    with base.autocast(enabled=generate.autocast):
        pixels = torch.cat(list(_generate(base, name, image_set, generate)))
    found: dict[str, list[Tensor]] = {metric: [] for metric in metrics}
    seeds = image_set.seeds_per_prompt
    for index, prompt in enumerate(image_set.prompts if metrics else ()):
        images = pixels[index * seeds : (index + 1) * seeds].float() / WHITE
        for metric, values in measure(metrics, images, prompt, context).items():
            found[metric].append(values)
    return GeneratedImages(pixels, {metric: torch.cat(values) for metric, values in found.items()})


def generate_and_measure(
    base: BaseModel,
    name: str,
    image_set: ImageSet,
    *,
    generate: GenerateSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> list[MeasuredImage]:
    """Draw and measure a set of images; one `MeasuredImage` for each, in the set's order. See `generate_set`."""
    generated = generate_set(base, name, image_set, generate=generate, metrics=metrics, context=context)
    figures = {metric: finish(metric, found, context).tolist() for metric, found in generated.found.items()}
    return [
        MeasuredImage(
            image_set.prompts[index],
            image_set.styles[index],
            k,
            generated.pixels[row],
            {metric: values[row] for metric, values in figures.items()},
        )
        for row, (index, k) in enumerate(image_set.places())
    ]


def mean_figures(image_set: Sequence[MeasuredImage], metrics: Sequence[str]) -> dict[str, float]:
    """Mean of each metric over the images."""
    return {name: sum(image.figures[name] for image in image_set) / len(image_set) for name in metrics}


def to_png(pixels: Tensor) -> bytes:
    """Encode 8-bit pixels (3, H, W) as PNG."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return file.getvalue()


def _generate(
    base: BaseModel, name: str, image_set: ImageSet, generate: GenerateSettings
) -> Iterator[Tensor]:
    """Images of the set in 8 bits, batch after batch."""
    places = image_set.places()
    device = _device(base)
    for start in range(0, len(places), generate.batch_size):
        batch = places[start : start + generate.batch_size]
        noise = torch.stack([image_set.noise(index, k, base.latent_shape) for index, k in batch])
        condition = image_set.condition[[index for index, _ in batch]].to(device)
        images = base.generate(
            condition,
            noise.to(device),
            num_inference_steps=generate.num_inference_steps,
            guidance_scale=generate.guidance_scale,
        )
        _require_finite(images, [image_set.prompts[index] for index, _ in batch], name)
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
