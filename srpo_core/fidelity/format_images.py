"""What a stored format does to images: distance to bf16's, completeness of denoising, gain that survives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from srpo_core import artifacts
from srpo_core.config import GenerateSettings
from srpo_core.errors import ConfigError, DivergenceError
from srpo_core.fidelity.image_distance import noise_level, psnr, ssim
from srpo_core.protocols import BaseModel, Condition
from srpo_core.randomness import keyed_noise
from srpo_core.scorers.metrics import MetricContext, measure

# As stage evaluate draws them, so that its figures of base and aligned model are those of the same images.
PURPOSE: Final = "evaluate"
SEED_NUMBER: Final = 0
REWARD: Final = "reward"
BASE: Final = "base"
ALIGNED: Final = "aligned"

T = TypeVar("T")


@dataclass(frozen=True)
class ImageProof:
    """Means over the images; None where there is nothing to compare with.

    psnr: dB to the reference's; ssim: at most 1; completeness: noise of the reference's last latents over
    this format's; reward_delta: to the reference; gain_kept: (format − base) / (aligned − base) of the gain's
    metric, None when the aligned model gains nothing on these images.
    """

    psnr: float | None
    ssim: float | None
    completeness: float
    reward_delta: float
    gain_kept: float | None


@dataclass(frozen=True)
class Evaluated:
    """Prompts, and the mean of the gain's metric over their images, by base and aligned model."""

    prompts: Sequence[str]
    base: float
    aligned: float


def evaluated_images(num_prompts: int, metric: str) -> Evaluated:
    """`num_prompts` of the prompts that stage evaluate drew, at even distances, with the figures of their first seed.

    Raises:
        ConfigError: fewer prompts were evaluated, or not by this metric.
    """
    rows = [row for row in artifacts.read_table(artifacts.FIGURES).to_pylist() if row["seed"] == SEED_NUMBER]
    known = dict.fromkeys(row["metric"] for row in rows)
    if metric not in known:
        raise ConfigError(
            f"quantize.gain {metric!r} was not evaluated: known are {', '.join(known)}; "
            "add it to evaluate.metrics"
        )
    generated = list(dict.fromkeys(row["prompt"] for row in rows))
    if len(generated) < num_prompts:
        raise ConfigError(
            f"quantize.num_prompts is {num_prompts}, but evaluate generated {len(generated)}: lower it, or raise "
            "evaluate.num_prompts"
        )
    prompts = evenly(generated, num_prompts)
    chosen = [row for row in rows if row["metric"] == metric and row["prompt"] in set(prompts)]

    def mean(model: str) -> float:
        values = [row["value"] for row in chosen if row["model"] == model]
        return float(sum(values) / len(values))

    return Evaluated(prompts, mean(BASE), mean(ALIGNED))


def evenly(items: Sequence[T], count: int) -> list[T]:
    """So many at even distances (all, if fewer): test prompts stand by their style, and its first would be of one."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


@dataclass(frozen=True)
class _Generated:
    images: Tensor
    noise: Tensor
    reward: float


class FormatImages:
    """Draws the same images by one format after the other; the first is the reference of the rest."""

    def __init__(
        self,
        evaluated: Evaluated,
        condition: Condition,
        seed: int,
        generate: GenerateSettings,
        context: MetricContext,
        gain: str,
    ) -> None:
        """condition: of the evaluated prompts; context: its device is that of the base."""
        self._evaluated, self._condition = evaluated, condition
        self._seed, self._settings, self._context, self._gain = seed, generate, context, gain
        self._reference: _Generated | None = None

    def look_at(self, base: BaseModel) -> ImageProof:
        """Draw with the weights that `base` holds, and compare.

        Raises:
            DivergenceError: an image is not a finite number.
        """
        images, noise = self._generate(base)
        figures = self._measure(images)
        generated = _Generated(images, noise, figures[REWARD])
        first = self._reference is None
        reference = self._reference = self._reference or generated
        gain = self._evaluated.aligned - self._evaluated.base
        return ImageProof(
            psnr=None if first else _mean_psnr(images, reference.images),
            ssim=None if first else float(ssim(images, reference.images).mean()),
            completeness=float((reference.noise / noise).mean()),
            reward_delta=generated.reward - reference.reward,
            gain_kept=(figures[self._gain] - self._evaluated.base) / gain if gain > 0 else None,
        )

    def _generate(self, base: BaseModel) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] and the noise levels (B,) of their last latents."""
        images, noise = [], []
        settings, device = self._settings, self._context.device
        for start in range(0, len(self._evaluated.prompts), settings.batch_size):
            rows = slice(start, start + settings.batch_size)
            begin = torch.stack(
                [
                    keyed_noise(base.latent_shape, self._seed, PURPOSE, prompt, SEED_NUMBER)
                    for prompt in self._evaluated.prompts[rows]
                ]
            )
            with torch.no_grad(), base.autocast(enabled=settings.autocast):
                latents = base.generate_latents(
                    self._condition[rows].to(device),
                    begin.to(device),
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                )
                if not bool(torch.isfinite(latents).all()):
                    raise DivergenceError(
                        "a format draws NaN or infinity: look at the checkpoint that select chose"
                    )
                images.append(base.decode(latents).clamp(0, 1).cpu())
            noise.append(noise_level(base.spatial(latents).cpu()))
        return torch.cat(images), torch.cat(noise)

    def _measure(self, images: Tensor) -> Mapping[str, float]:
        """Means of the reward and of the gain's metric, on images in 8 bits, as evaluate measures them."""
        names = list(dict.fromkeys((REWARD, self._gain)))
        rounded = (images * 255).round() / 255
        rows = [
            measure(names, rounded[index : index + 1], prompt, self._context)
            for index, prompt in enumerate(self._evaluated.prompts)
        ]
        return {name: sum(float(row[name][0]) for row in rows) / len(rows) for name in names}


def _mean_psnr(images: Tensor, reference: Tensor) -> float | None:
    """Mean over the images that differ at all; None when all are equal to the last bit.

    Not a number where an image is not, so that no limit holds.
    """
    values = psnr(images, reference)
    different = values[~torch.isposinf(values)]
    return float(different.mean()) if len(different) else None
