"""What a stored format does to images: distance to the reference's, completeness of denoising, gain kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from srpo_core import artifacts
from srpo_core.artifacts import ALIGNED, BASE
from srpo_core.config import GenerateSettings
from srpo_core.data.subsets import evenly_spaced
from srpo_core.errors import ConfigError, DivergenceError
from srpo_core.fidelity.image_distance import noise_level, psnr, ssim
from srpo_core.generation.images import ImageSet, from_8_bits, noise_batches, to_8_bits
from srpo_core.models.precision import tf32
from srpo_core.protocols import BaseModel
from srpo_core.scorers.metrics import MetricContext, measure

PURPOSE: Final = (
    "evaluate"  # the key of stage evaluate's noise, so that base and aligned figures are of the same images
)
SEED_NUMBER: Final = 0
PROOF_PROMPTS: Final = 8  # evenly spaced test prompts, in one forward pass
REWARD: Final = "reward"


@dataclass(frozen=True)
class ImageProof:
    """Means over the images; None where there is nothing to compare with.

    psnr: dB to the reference's images; ssim: to the same, at most 1; completeness: noise of the reference's last
    latents over this format's; reward_delta: to the reference; gain_kept: (format − base) / (aligned − base) of the
    gain's metric, None if the aligned model gains nothing on these images.
    """

    psnr: float | None
    ssim: float | None
    completeness: float
    reward_delta: float
    gain_kept: float | None


@dataclass(frozen=True)
class Evaluated:
    """Prompts, and the mean of the gain's metric over their images, of base and aligned model."""

    prompts: Sequence[str]
    base: float
    aligned: float


def evaluated_images(num_prompts: int, metric: str, prompts: Sequence[str]) -> Evaluated:
    """Choose `num_prompts` evenly spaced prompts of stage evaluate, with the figures of their first seed.

    All of them, if the evaluation ended early with fewer.

    prompts: all test prompts, sorted by style. An evaluation in stages has drawn its prompts in another order.

    Raises:
        ConfigError: the prompts were not evaluated by this metric.
    """
    rows = [row for row in artifacts.read_table(artifacts.FIGURES).to_pylist() if row["seed"] == SEED_NUMBER]
    known = dict.fromkeys(row["metric"] for row in rows)
    if metric not in known:
        raise ConfigError(
            f"quantize.gain {metric!r} was not evaluated: known are {', '.join(known)}; "
            "add it to evaluate.metrics"
        )
    generated = {row["prompt"] for row in rows}
    some = evenly_spaced([prompt for prompt in prompts if prompt in generated], num_prompts)
    chosen = [row for row in rows if row["metric"] == metric and row["prompt"] in set(some)]

    def mean(model: str) -> float:
        values = [row["value"] for row in chosen if row["model"] == model]
        return float(sum(values) / len(values))

    return Evaluated(some, mean(BASE), mean(ALIGNED))


@dataclass(frozen=True)
class _Generated:
    images: Tensor
    noise: Tensor
    reward: float


class FormatImages:
    """Generates the same images with one format after the other; the first is the reference of the rest."""

    def __init__(
        self,
        evaluated: Evaluated,
        image_set: ImageSet,
        generate: GenerateSettings,
        context: MetricContext,
        *,
        gain: str,
    ) -> None:
        """image_set: of the evaluated prompts; context: its device is that of the base; gain: name of a metric."""
        self._evaluated, self._image_set = evaluated, image_set
        self._generate_settings, self._context, self._gain = generate, context, gain
        self._reference: _Generated | None = None

    def measure(self, base: BaseModel) -> ImageProof:
        """Generate images with the current weights of `base`, and compare them with the reference's.

        Raises:
            DivergenceError: the latents of an image hold NaN or infinity.
        """
        images, noise = self._generate(base)
        figures = self._means(images)
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
        """Generate images (B, 3, H, W) in [0, 1], and measure the noise levels (B,) of their last latents."""
        images, noise_levels = [], []
        settings = self._generate_settings
        for _, condition, noise in noise_batches(
            self._image_set, base.latent_shape, batch_size=settings.batch_size, device=self._context.device
        ):
            with torch.no_grad(), base.autocast(enabled=settings.autocast), tf32(enabled=settings.tf32):
                latents = base.generate_latents(
                    condition,
                    noise,
                    num_inference_steps=settings.num_inference_steps,
                    guidance_scale=settings.guidance_scale,
                )
                if not bool(torch.isfinite(latents).all()):
                    raise DivergenceError(
                        "a format generates NaN or infinity: inspect the checkpoint that select chose"
                    )
                images.append(base.decode(latents).clamp(0, 1).cpu())
            noise_levels.append(noise_level(base.spatial(latents).cpu()))
        return torch.cat(images), torch.cat(noise_levels)

    def _means(self, images: Tensor) -> Mapping[str, float]:
        """Average the reward and the gain's metric, measured on 8-bit images as in stage evaluate."""
        names = list(dict.fromkeys((REWARD, self._gain)))
        rounded = from_8_bits(to_8_bits(images))
        rows = [
            measure(names, rounded[index : index + 1], prompt, self._context)
            for index, prompt in enumerate(self._image_set.prompts)
        ]
        return {name: sum(float(row[name][0]) for row in rows) / len(rows) for name in names}


def _mean_psnr(images: Tensor, reference: Tensor) -> float | None:
    """Average over the images that differ at all; None if all are equal to the last bit.

    NaN if an image is NaN, so that no limit holds.
    """
    values = psnr(images, reference)
    different = values[~torch.isposinf(values)]
    return float(different.mean()) if len(different) else None
