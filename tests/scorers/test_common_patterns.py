"""Patterns that many images share: each planted in real images, and absent from them without it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from srpo_core.scorers import common_patterns as patterns

SUBJECTS, STYLES = 30, 2


@pytest.fixture(scope="module")
def real(emoji):
    """Return images of 30 subjects in two styles, prompt by prompt, and the prompts' numbers."""
    images, styles, names = emoji
    place = {(name, style): row for row, (name, style) in enumerate(zip(names, styles, strict=True))}
    chosen = [name for name in dict.fromkeys(names) if (name, "3D") in place and (name, "Flat") in place]
    rows = [place[name, style] for name in chosen[:SUBJECTS] for style in ("3D", "Flat")]
    return images[rows], torch.arange(len(rows) // STYLES).repeat_interleave(STYLES)


def jpeg(images, quality):
    found = []
    for image in images:
        store = io.BytesIO()
        Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)).save(
            store, "JPEG", quality=quality
        )
        found.append(torch.from_numpy(np.array(Image.open(store))).permute(2, 0, 1) / 255)
    return torch.stack(found)


def with_square(images, value=0.0):
    marked = images.clone()
    marked[:, :, 50:60, 50:60] = value
    return marked


def halved(images):
    return torch.nn.functional.avg_pool2d(images, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_a_square_in_every_image_makes_the_edges_of_different_prompts_alike(real):
    images, prompts = real
    before, after = (
        patterns.shared_edges(patterns.edges(one), prompts).mean() for one in (images, with_square(images))
    )
    assert abs(before) < 0.02
    assert after - before > 0.03


def test_the_figure_of_a_prompt_is_its_influence_on_the_mean_cosine_between_prompts(real):
    images, prompts = real
    found = patterns.edges(with_square(images))
    unit = (
        torch.nn.functional.normalize(found.flatten(1), dim=1).view(len(images) // STYLES, STYLES, -1).mean(1)
    )
    cosines = unit @ unit.T
    count = len(cosines)
    mean = (cosines.sum() - cosines.trace()) / (count * (count - 1))
    influence = patterns.shared_edges(found, prompts)
    assert influence.mean() == pytest.approx(float(mean), abs=1e-6)
    without = cosines[1:, 1:]
    rest = (without.sum() - without.trace()) / ((count - 1) * (count - 2))
    # to first order, leaving a prompt out moves the mean by its influence over the number of prompts
    assert (influence[0] - mean) / (count - 2) == pytest.approx(float(mean - rest), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_an_edge_at_one_place_of_every_image_is_common_to_all(real, value):
    images, _ = real
    assert patterns.strongest_common_edge(patterns.edges(images)) < 0.75
    assert patterns.strongest_common_edge(patterns.edges(with_square(images, value))) > 0.9


@pytest.mark.parametrize("damage", [halved, lambda images: jpeg(images, 5)], ids=["halved", "jpeg"])
def test_images_of_half_the_resolution_and_strong_compression_have_uneven_phases(real, damage):
    images, _ = real
    profile = patterns.phase_profile(images)
    assert profile.shape == (len(images), 28)
    assert patterns.uneven_phases(patterns.phase_profile(damage(images)), profile) > 0.3
    assert patterns.uneven_phases(profile, profile) == 0
    assert patterns.uneven_phases(patterns.phase_profile(images.flip(3)), profile) < 0.1


def test_a_wave_of_one_frequency_stands_out_of_the_spectrum_of_small_and_of_large_images(real):
    images, _ = real
    for own in (images, torch.nn.functional.interpolate(images, 160, mode="bicubic").clamp(0, 1)):
        side = own.shape[-1]
        wave = 0.03 * torch.sin(2 * torch.pi * torch.arange(side) * 0.25)
        base = patterns.log_spectrum(own)
        assert patterns.spectral_peak(patterns.log_spectrum((own + wave).clamp(0, 1)), base) > 1
        assert patterns.spectral_peak(patterns.log_spectrum(own.flip(2)), base) < 1
        assert patterns.spectral_peak(base, base) == 0


def test_an_image_of_another_prompt_is_a_copy_also_if_it_is_mirrored(real):
    images, prompts = real
    base = patterns.outlines(images)
    copied = images.clone()
    copied[7] = images[20]
    copied[9] = images[30].flip(-1)
    found = patterns.copies(patterns.outlines(copied), prompts, base, None)
    assert found.nonzero().flatten().tolist() == [7, 9, 20, 30]
    assert not patterns.copies(base, prompts, base, None).any()


def test_an_image_of_the_training_data_is_a_copy_unless_the_base_has_it_too(real):
    images, prompts = real
    base = patterns.outlines(images[:-2])
    copied = images[:-2].clone()
    copied[7] = images[-1]
    found = patterns.copies(patterns.outlines(copied), prompts[:-2], base, patterns.outlines(images[-2:]))
    assert found.nonzero().flatten().tolist() == [7]
    known = patterns.copies(base, prompts[:-2], base, base[:3])
    assert not known.any()


def test_the_image_of_another_seed_is_a_repetition_but_no_copy(real):
    images, prompts = real
    base = patterns.outlines(images)
    same = images.clone()
    same[7] = images[6]
    found = patterns.outlines(same)
    assert patterns.repeats(found, prompts, base).nonzero().flatten().tolist() == [6, 7]
    assert not patterns.copies(found, prompts, base, None).any()


def test_images_of_any_size_have_edges_and_outlines_of_a_limited_size():
    images = torch.rand(2, 3, 720, 400, generator=torch.Generator().manual_seed(0))
    assert patterns.edges(images).shape == (2, 3, 126, 126)
    assert patterns.edges(images[..., :48, :48]).shape == (2, 3, 46, 46)
    assert patterns.outlines(images).shape == patterns.outlines(images[..., :48, :48]).shape
