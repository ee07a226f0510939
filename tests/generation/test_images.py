import io
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from srpo_core.config import GenerateSettings
from srpo_core.errors import DivergenceError
from srpo_core.generation import images as module
from srpo_core.generation.images import ImageSet, MeasuredImage, generate_and_measure, mean_figures, to_png
from srpo_core.protocols import Condition
from srpo_core.randomness import keyed_noise

PROMPTS = ["red apple", "cat", "owl"]


class ShowsNoise:
    """A base whose images are its noise (4 tokens of 3 channels as 2 x 2 pixels)."""

    latent_shape = (4, 3)

    def __init__(self):
        self.batches, self.in_bfloat16_at_each = [], []
        self._in_bfloat16 = None
        self.device = torch.device("cpu")
        self.precisions = set()
        self.transformer = torch.nn.Linear(1, 1)

    @contextmanager
    def autocast(self, *, enabled):
        self._in_bfloat16 = enabled
        yield
        self._in_bfloat16 = None

    def generate(self, condition, noise, *, num_inference_steps, guidance_scale):
        self.batches.append(len(noise))
        self.in_bfloat16_at_each.append(self._in_bfloat16)
        self.precisions.add(torch.backends.cuda.matmul.fp32_precision)
        images = noise.transpose(1, 2).reshape(-1, 3, 2, 2) / 8 + 0.5
        return images + condition.tensors["pooled"][:, :1, None, None] * 0


class GeneratesNan(ShowsNoise):
    def generate(self, condition, noise, *, num_inference_steps, guidance_scale):
        images = super().generate(
            condition, noise, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        images[condition.tensors["pooled"][:, 0] == 1] = torch.nan
        return images


def image_set(purpose="select", seed=0, seeds_per_prompt=2):
    numbers = torch.arange(3.0)
    condition = Condition({"pooled": numbers[:, None]})
    return ImageSet(purpose, PROMPTS, ["a", "b", "b"], condition, seeds_per_prompt, seed)


def generated(image_set, batch_size=32, base=None, metrics=()):
    generate = GenerateSettings(
        num_inference_steps=1,
        guidance_scale=1,
        batch_size=batch_size,
        autocast=False,
        tf32=False,
        decode="whole",
    )
    return generate_and_measure(
        base or ShowsNoise(), "step 5", image_set, generate=generate, metrics=metrics, context=None
    )


def test_images_are_ordered_by_prompt_then_by_seed():
    order = [(image.prompt, image.style, image.seed) for image in generated(image_set())]
    assert order == [
        ("red apple", "a", 0),
        ("red apple", "a", 1),
        ("cat", "b", 0),
        ("cat", "b", 1),
        ("owl", "b", 0),
        ("owl", "b", 1),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
def test_the_batch_size_does_not_change_images_and_is_not_exceeded(batch_size):
    base = ShowsNoise()
    whole, parts = generated(image_set()), generated(image_set(), batch_size, base)
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(whole, parts, strict=True))
    assert max(base.batches) == batch_size
    assert sum(base.batches) == 6


@pytest.mark.parametrize("autocast", [False, True])
def test_images_are_generated_in_the_precision_of_the_settings(autocast):
    base = ShowsNoise()
    generate = GenerateSettings(
        num_inference_steps=1,
        guidance_scale=1,
        batch_size=6,
        autocast=autocast,
        tf32=autocast,
        decode="whole",
    )
    generate_and_measure(base, "base", image_set(), generate=generate, metrics=(), context=None)
    assert base.in_bfloat16_at_each == [autocast]
    assert base.precisions == {"tf32" if autocast else "ieee"}


def test_the_noise_of_an_image_depends_on_seed_purpose_prompt_and_number():
    noise = image_set("evaluate", 7).noise(1, 2, (4, 3))
    assert torch.equal(noise, keyed_noise((4, 3), 7, "evaluate", "cat", 2))
    others = [
        image_set("select", 7).noise(1, 2, (4, 3)),
        image_set("evaluate", 8).noise(1, 2, (4, 3)),
        image_set("evaluate", 7).noise(0, 2, (4, 3)),
        image_set("evaluate", 7).noise(1, 1, (4, 3)),
    ]
    assert not any(torch.equal(noise, other) for other in others)


def test_figures_are_measured_on_the_stored_8_bit_images(monkeypatch):
    def mean_of_pixels(names, images, prompt, context):
        return {"mean": images.mean((1, 2, 3))}

    monkeypatch.setattr(module, "measure", mean_of_pixels)
    monkeypatch.setattr(module, "finish", lambda name, values, context: values)
    for image in generated(image_set(), metrics=["mean"]):
        stored = np.asarray(Image.open(io.BytesIO(to_png(image.pixels)))) / 255
        assert image.figures["mean"] == pytest.approx(stored.mean(), abs=1e-6)


def test_all_seeds_of_a_prompt_are_measured_together_for_any_batch_size(monkeypatch):
    seen = []

    def note(names, images, prompt, context):
        seen.append((prompt, len(images)))
        return {"any": torch.zeros(len(images))}

    monkeypatch.setattr(module, "measure", note)
    monkeypatch.setattr(module, "finish", lambda name, values, context: values)
    generated(image_set(seeds_per_prompt=3), batch_size=2, metrics=["any"])
    assert seen == [("red apple", 3), ("cat", 3), ("owl", 3)]


def test_png_keeps_every_pixel_and_the_order_of_channels():
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    image = Image.open(io.BytesIO(to_png(pixels)))
    assert image.size == (5, 4)
    assert np.array_equal(np.asarray(image), pixels.permute(1, 2, 0).numpy())


def test_values_outside_zero_to_one_are_clamped_and_rounded():
    pixels = module.to_8_bits(torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.2]))
    assert pixels.tolist() == [0, 0, 0, 1, 255, 255]


def test_a_model_that_generates_nan_raises_an_error_with_its_name_and_the_prompt():
    with pytest.raises(DivergenceError, match="step 5 generates NaN or infinity for prompt 'cat'"):
        generated(image_set(), base=GeneratesNan())


def test_a_part_of_a_set_has_the_same_images_as_the_whole():
    whole = generated(image_set())
    parts = [*generated(image_set().part(0, 2)), *generated(image_set().part(2, 9))]
    assert [(p.prompt, p.style, p.seed) for p in parts] == [(p.prompt, p.style, p.seed) for p in whole]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(parts, whole, strict=True))


def test_means_are_over_all_images():
    two = [MeasuredImage("cat", "", k, torch.zeros(1), {"m": value}) for k, value in enumerate((0.2, 0.6))]
    assert mean_figures(two, ["m"]) == {"m": pytest.approx(0.4)}
