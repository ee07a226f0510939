"""Generate and measure the images of which benchmarks/alarm.py simulates runs; write benchmarks/alarm_rows.npz.

    make demo && python benchmarks/alarm_rows.py

The prompts are those of the split test, 40 in the tiny preset, with 16 seeds each. The kinds of images are

    base      by the base of params.yaml
    honest    by the last checkpoint of the run in runs/, from the same noise
    collapse  by this checkpoint, from noise that hardly differs within groups of four seeds
    noise, wrong, blur   the honest images, replaced by noise, exchanged between prompts, and blurred
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from alarm import GROUP, ROWS
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.functional import gaussian_blur

from srpo_core.artifacts import CHECKPOINTS
from srpo_core.config import Settings, load_settings
from srpo_core.generation.images import from_8_bits, to_8_bits
from srpo_core.models import load_base
from srpo_core.models.embeddings import read_embeddings
from srpo_core.protocols import BaseModel, Condition
from srpo_core.randomness import keyed_generator, keyed_noise
from srpo_core.scorers.metrics import MetricContext, measure
from srpo_core.scorers.metrics.broken_images import evidence
from srpo_core.scorers.metrics.context import judge_features

SEEDS: Final = 16
METRICS: Final = ("judge_top5", "saturation", "red_over_green", "yellow_over_blue")
OWN: Final = 0.15  # share of an image's own noise where seeds collapse, the rest is that of its group
BLUR_SIGMA: Final = 1.2  # pixels
PURPOSE: Final = "alarm rows"


def noise_of(prompt: str, shape: tuple[int, int], *, collapsed: bool) -> Tensor:
    """Return unit noise (SEEDS, S, C) of a prompt; `collapsed`: almost the same within groups of `GROUP` seeds."""
    own = torch.stack([keyed_noise(shape, 0, PURPOSE, prompt, seed) for seed in range(SEEDS)])
    if not collapsed:
        return own
    groups = [keyed_noise(shape, 0, PURPOSE, prompt, "group", seed // GROUP) for seed in range(SEEDS)]
    return (1 - OWN**2) ** 0.5 * torch.stack(groups) + OWN * own


@torch.no_grad()
def generate(
    model: BaseModel, settings: Settings, prompts: Sequence[str], condition: Condition, *, collapsed: bool
) -> Iterator[Tensor]:
    """Yield the images (SEEDS, 3, H, W) of each prompt, with the sampler of early stop."""
    rule = settings.train.early_stop
    assert rule is not None, "train.early_stop of params.yaml is null"
    for index, prompt in enumerate(prompts):
        images = model.generate(
            condition.batch([index] * SEEDS, torch.device("cpu")),
            noise_of(prompt, model.latent_shape, collapsed=collapsed),
            num_inference_steps=rule.num_inference_steps,
            guidance_scale=settings.train.rollout.guidance_scale,
        )
        yield from_8_bits(to_8_bits(images))


def with_faults(honest: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Return the honest images by prompt, replaced by noise, exchanged between prompts, and blurred."""
    half = len(honest) // 2
    generator = keyed_generator(0, PURPOSE, "noise")
    size = [1 + 2 * round(3 * BLUR_SIGMA)] * 2
    return {
        "noise": [torch.rand(images.shape, generator=generator) for images in honest],
        "wrong": [*honest[half:], *honest[:half]],
        "blur": [gaussian_blur(images, size, [BLUR_SIGMA] * 2) for images in honest],
    }


@torch.no_grad()
def rows_of(images: Sequence[Tensor], prompts: Sequence[str], context: MetricContext) -> dict[str, Any]:
    """Measure the images of one kind. Returns arrays (N, SEEDS, …) by the names that benchmarks/alarm.py reads.

    reward, subject: (N, SEEDS, N), the score of each image for the text of each prompt; distances: (N, SEEDS, SEEDS).
    """
    found = [evidence(own, prompt, context) for own, prompt in zip(images, prompts, strict=True)]
    features = [normalize(judge_features(own, context), dim=-1) for own in images]
    measured = [measure(METRICS, own, prompt, context) for own, prompt in zip(images, prompts, strict=True)]
    rows = {
        name: torch.stack([scored[place].images for scored, _ in found])
        @ torch.stack([scored[place].texts[0] for scored, _ in found]).T
        for place, name in enumerate(("reward", "subject"))
    }
    rows["statistics"] = torch.stack([statistics for _, statistics in found])
    rows["distances"] = torch.stack([torch.cdist(one, one) for one in features])
    rows |= {name: torch.stack([one[name] for one in measured]) for name in METRICS}
    small = {"judge_top5": np.uint8}
    return {name: values.numpy().astype(small.get(name, np.float16)) for name, values in rows.items()}


def main() -> None:
    """Generate, measure, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, help="default: the last one in runs/train/checkpoints")
    parser.add_argument("--out", type=Path, default=ROWS)
    parser.add_argument("--prompts", type=int, help="use only the first ones")
    options = parser.parse_args()
    settings = load_settings()
    checkpoint = options.checkpoint or max(CHECKPOINTS.iterdir())
    texts, _, condition = read_embeddings("test")
    prompts = texts[: options.prompts]
    context = MetricContext(
        settings.rewards, settings.select_judge, settings.control_words, device=torch.device("cpu")
    )
    base, model = load_base(settings.model), load_base(settings.model, checkpoint)
    honest = list(generate(model, settings, prompts, condition, collapsed=False))
    kinds = {
        "base": list(generate(base, settings, prompts, condition, collapsed=False)),
        "honest": honest,
        "collapse": list(generate(model, settings, prompts, condition, collapsed=True)),
        **with_faults(honest),
    }
    rows = {
        f"{kind}.{name}": values
        for kind, images in kinds.items()
        for name, values in rows_of(images, prompts, context).items()
    }
    np.savez_compressed(options.out, **rows)


if __name__ == "__main__":
    main()
