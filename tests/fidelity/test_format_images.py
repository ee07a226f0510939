"""Figures of the images of a format, on images with known results."""

import math
from collections import Counter
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from srpo_core import artifacts
from srpo_core.config import ControlWords, GenerateSettings, ScorerSettings
from srpo_core.fidelity import format_images
from srpo_core.fidelity.format_images import Evaluated, FormatImages, _mean_psnr
from srpo_core.generation.images import ImageSet
from srpo_core.protocols import Condition
from srpo_core.scorers.metrics import MetricContext

SIDE = 16


class PlainBase:
    """Generates latents with known noise; the red channel of images is the reward, green is the gain metric."""

    latent_shape = (SIDE * SIDE, 1)

    def __init__(self, *, noise=1.0, reward=0.0, gain=0.0):
        self.noise, self.reward, self.gain = noise, reward, gain

    def autocast(self, *, enabled):
        return nullcontext()

    def generate_latents(self, condition, begin, *, num_inference_steps, guidance_scale):
        return begin * self.noise

    def spatial(self, latents):
        return latents.reshape(-1, 1, SIDE, SIDE)

    def decode(self, latents):
        colour = torch.tensor([self.reward, self.gain, 0.0]).view(1, 3, 1, 1)
        return colour.expand(len(latents), 3, SIDE, SIDE)


@pytest.fixture
def images(monkeypatch):
    """Three prompts; the gain metric is 0.2 for the base and 0.6 for the aligned model."""

    def by_colour(names, images, _prompt, _context):
        red, green, _ = images.mean((2, 3)).unbind(1)
        known = {"reward": red, "judge_wanted": green}
        return {name: known[name] for name in names}

    monkeypatch.setattr(format_images, "measure", by_colour)
    nothing = ScorerSettings(scorer="open_clip", path="nowhere")
    prompts = ["crab", "rose", "owl"]
    return FormatImages(
        Evaluated(prompts, base=0.2, aligned=0.6),
        ImageSet("evaluate", prompts, [""] * 3, Condition({"pooled": torch.zeros(3, 1)}), 1, 0),
        GenerateSettings(
            num_inference_steps=1,
            guidance_scale=1.0,
            batch_size=2,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        MetricContext([], nothing, ControlWords.of(["Ink"], ["3D"])),
        gain="judge_wanted",
    )


@pytest.mark.parametrize("in_stages", [False, True])
def test_prompts_are_evenly_spaced_so_that_every_style_is_among_them(tmp_path, monkeypatch, in_stages):
    """Test prompts are sorted by style, as in HPD; the first stage of an evaluation has every second one of each style."""
    styles = ["anime"] * 50 + ["concept-art"] * 50 + ["paintings"] * 50 + ["photo"] * 50
    prompts = [f"{style} {index}" for index, style in enumerate(styles)]
    rows = [
        {
            "seed": seed,
            "metric": "reward",
            "prompt": prompt,
            "model": model,
            "value": index + (model == "aligned"),
        }
        for model in ("base", "aligned")
        for index, prompt in sorted(enumerate(prompts), key=lambda one: in_stages and one[0] % 2)
        for seed in (0, 1)
    ]
    (tmp_path / artifacts.FIGURES).parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / artifacts.FIGURES)
    monkeypatch.chdir(tmp_path)
    found = format_images.evaluated_images(16, "reward", prompts)
    assert Counter(prompt.split()[0] for prompt in found.prompts) == dict.fromkeys(dict.fromkeys(styles), 4)
    assert found.aligned - found.base == pytest.approx(1)
    assert found.base == pytest.approx(sum(prompts.index(prompt) for prompt in found.prompts) / 16)
    assert format_images.evaluated_images(200, "reward", prompts).prompts == prompts
    more = ["another prompt", *prompts]
    assert format_images.evaluated_images(201, "reward", more).prompts == prompts, "it ended early with fewer"


def test_latents_with_twice_the_noise_of_the_reference_have_completeness_one_half(images):
    assert images.measure(PlainBase(noise=0.3)).completeness == 1
    assert images.measure(PlainBase(noise=0.6)).completeness == pytest.approx(0.5, rel=1e-5)
    assert images.measure(PlainBase(noise=0.15)).completeness == pytest.approx(2.0, rel=1e-5)


def test_the_gain_kept_is_relative_to_the_gain_of_the_aligned_model_over_the_base(images):
    """It is not relative to zero: base, aligned model and images all have different figures."""
    kept = [images.measure(PlainBase(gain=figure)).gain_kept for figure in (0.6, 0.4, 0.2, 0.0)]
    assert kept == pytest.approx([1.0, 0.5, 0.0, -0.5], abs=1e-5)


@pytest.mark.parametrize(("enabled", "expected"), [(True, "tf32"), (False, "ieee")])
def test_images_are_generated_and_decoded_in_the_precision_of_the_settings(images, enabled, expected):
    """As in stage evaluate, whose images they are compared with."""
    seen = []

    class Watched(PlainBase):
        def generate_latents(self, *inputs, **options):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return super().generate_latents(*inputs, **options)

        def decode(self, latents):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return super().decode(latents)

    images._generate_settings = images._generate_settings.model_copy(update={"tf32": enabled})
    images.measure(Watched())
    assert seen == [expected] * 4, "two batches, each generated and decoded"
    assert torch.backends.cuda.matmul.fp32_precision != "tf32", "restored"


def test_images_with_a_lower_reward_than_the_reference_have_a_negative_delta(images):
    deltas = [images.measure(PlainBase(reward=reward)).reward_delta for reward in (0.4, 0.2, 0.6)]
    assert deltas == pytest.approx([0.0, -0.2, 0.2], abs=1e-6)


def test_psnr_leaves_out_equal_images_and_is_none_if_all_are_equal():
    black = torch.zeros(3, 3, 8, 8)
    images = black.clone()
    images[1] += 0.1
    assert _mean_psnr(images, black) == pytest.approx(20.0, abs=1e-4)
    assert _mean_psnr(black, black) is None


def test_psnr_is_nan_if_an_image_is_nan():
    black = torch.zeros(2, 3, 8, 8)
    for broken in (torch.tensor([math.nan, 0.0]), torch.tensor([math.nan, math.nan])):
        mean = _mean_psnr(black + broken.view(2, 1, 1, 1), black)
        assert mean is not None
        assert math.isnan(mean)
