"""Images for selection, evaluation and release: generated from noise keyed by prompt and seed, then measured.

Two models that generate the same `ImageSet` start from the same noise, so their images are paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Final

import torch
from torch import Tensor

from srpo_core.config import GenerateSettings
from srpo_core.errors import DivergenceError
from srpo_core.models.precision import tf32
from srpo_core.protocols import BaseModel, Condition
from srpo_core.randomness import keyed_noise
from srpo_core.scorers.metrics import MetricContext, finish, measure

WHITE: Final = 255


@dataclass(frozen=True)
class ImageSet:
    """The images to generate: prompts with their styles and embeddings, and the number of seeds of each prompt.

    The noise of an image is keyed by (seed, purpose, prompt, number of the seed).
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

    def of(self, rows: Sequence[int]) -> "ImageSet":
        """Return the images of some prompts, given by their indices, in that order."""
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            styles=[self.styles[row] for row in rows],
            condition=self.condition[list(rows)],
        )

    def part(self, start: int, stop: int) -> "ImageSet":
        """Return the images of the prompts at start … stop-1."""
        rows = slice(start, min(stop, len(self.prompts)))
        return replace(
            self,
            prompts=self.prompts[rows],
            styles=self.styles[rows],
            condition=self.condition[rows],
        )

    def places(self) -> list[tuple[int, int]]:
        """List (index of the prompt, number of the seed) of every image, prompt by prompt."""
        return [(index, k) for index in range(len(self.prompts)) for k in range(self.seeds_per_prompt)]

    def noise(self, index: int, k: int, shape: tuple[int, int]) -> Tensor:
        """Return the noise of shape (S, C) from which image `k` of prompt `index` is generated."""
        return keyed_noise(shape, self.seed, self.purpose, self.prompts[index], k)


@dataclass(frozen=True)
class GeneratedImages:
    """The images of a set in its order.

    pixels: (P, 3, H, W) in 8 bits, as images are stored and measured; measured: by metric, the values of `measure`,
    (P,), or (P, D) for a metric over all images.
    """

    pixels: Tensor
    measured: dict[str, Tensor]


@dataclass(frozen=True)
class MeasuredImage:
    """An image with one figure per metric; seed: number of the image among those of its prompt."""

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
    """Generate a set of images with the model called `name` and measure them.

    Raises:
        DivergenceError: the model generates NaN or infinity.
    """
    pixels = generate_pixels(base, name, image_set, image_set.places(), generate=generate)
    return measure_set(pixels, image_set, metrics=metrics, context=context)


def generate_pixels(
    base: BaseModel,
    name: str,
    image_set: ImageSet,
    places: Sequence[tuple[int, int]],
    *,
    generate: GenerateSettings,
) -> Tensor:
    """Generate some images of a set, given by `places`, in 8 bits (B, 3, H, W). Raises as `generate_set`."""
    with base.autocast(enabled=generate.autocast), tf32(enabled=generate.tf32):
        return torch.cat(list(_generate(base, name, image_set, places, generate)))


def measure_set(
    pixels: Tensor, image_set: ImageSet, *, metrics: Sequence[str], context: MetricContext
) -> GeneratedImages:
    """Measure the generated images of a set, (P, 3, H, W) in 8 bits in the set's order."""
    measured: dict[str, list[Tensor]] = {metric: [] for metric in metrics}
    seeds = image_set.seeds_per_prompt
    for index, prompt in enumerate(image_set.prompts if metrics else ()):
        images = from_8_bits(pixels[index * seeds : (index + 1) * seeds])
        for metric, values in measure(metrics, images, prompt, context).items():
            measured[metric].append(values)
    return GeneratedImages(pixels, {metric: torch.cat(values) for metric, values in measured.items()})


def generate_and_measure(
    base: BaseModel,
    name: str,
    image_set: ImageSet,
    *,
    generate: GenerateSettings,
    metrics: Sequence[str],
    context: MetricContext,
) -> list[MeasuredImage]:
    """Generate and measure a set of images; returns them in the set's order. See `generate_set`."""
    generated = generate_set(base, name, image_set, generate=generate, metrics=metrics, context=context)
    figures = {
        metric: finish(metric, values, context).tolist() for metric, values in generated.measured.items()
    }
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


def mean_figures(images: Sequence[MeasuredImage], metrics: Sequence[str]) -> dict[str, float]:
    """Average each metric over the images."""
    return {name: sum(image.figures[name] for image in images) / len(images) for name in metrics}


def to_png(pixels: Tensor) -> bytes:
    """Encode 8-bit pixels (3, H, W) as PNG."""
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, format="PNG")
    return file.getvalue()


def noise_batches(
    image_set: ImageSet,
    shape: tuple[int, int],
    *,
    batch_size: int,
    device: torch.device,
    places: Sequence[tuple[int, int]] | None = None,
) -> Iterator[tuple[list[int], Condition, Tensor]]:
    """Yield (prompt indices, condition, noise (B, S, C)) of a set's images in its order, on a device.

    shape: (S, C) of one image's packed latents; places: the images, if not all of the set.
    """
    places = image_set.places() if places is None else places
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        rows = [index for index, _ in batch]
        noise = torch.stack([image_set.noise(index, k, shape) for index, k in batch])
        yield rows, image_set.condition.batch(rows, device), noise.to(device)


def to_8_bits(images: Tensor) -> Tensor:
    """Round images in [0, 1], clamped, to uint8 on the CPU, in the same memory format: figures depend on it."""
    return (images.clamp(0, 1) * WHITE).round().to(torch.uint8).cpu()


def from_8_bits(pixels: Tensor) -> Tensor:
    """Return 8-bit pixels as float32 images in [0, 1]."""
    return pixels.float() / WHITE


def _generate(
    base: BaseModel,
    name: str,
    image_set: ImageSet,
    places: Sequence[tuple[int, int]],
    generate: GenerateSettings,
) -> Iterator[Tensor]:
    """Yield images of the set in 8 bits, batch by batch."""
    for rows, condition, noise in noise_batches(
        image_set, base.latent_shape, batch_size=generate.batch_size, device=base.device, places=places
    ):
        images = base.generate(
            condition,
            noise,
            num_inference_steps=generate.num_inference_steps,
            guidance_scale=generate.guidance_scale,
        )
        _require_finite(images, [image_set.prompts[row] for row in rows], name)
        yield to_8_bits(images).contiguous()


def _require_finite(images: Tensor, prompts: Sequence[str], name: str) -> None:
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    if not all(finite):
        raise DivergenceError(
            f"{name} generates NaN or infinity for prompt {prompts[finite.index(False)]!r}: "
            "lower train.optimizer.learning_rate or train fewer steps"
        )
