import colorsys

import pytest
import torch

from srpo_core.scorers.image_statistics import (
    GRID_PIXELS,
    clipped_highlights,
    grid_energy,
    high_frequency_energy,
    red_over_green,
    saturation,
    yellow_over_blue,
)

SIZE = 64


def plain(*colour, size=SIZE):
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, size, size)


@pytest.mark.parametrize("colour", [(0.9, 0.1, 0.3), (0.2, 0.2, 0.2), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)])
def test_saturation_equals_that_of_hsv(colour):
    assert float(saturation(plain(*colour))) == pytest.approx(colorsys.rgb_to_hsv(*colour)[1], abs=1e-6)


def test_saturation_is_averaged_over_pixels_and_not_computed_from_the_mean_colour():
    red_and_green = torch.cat([plain(1.0, 0, 0), plain(0, 1.0, 0)], dim=3)
    assert float(saturation(red_and_green)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("colour", "red", "yellow"),
    [
        ((1, 0, 0), 1, 0.5),
        ((0, 1, 0), -1, 0.5),
        ((0, 0, 1), 0, -1),
        ((1, 1, 0), 0, 1),
        ((0.6, 0.2, 0.6), 0.4, -0.2),
        ((0.5, 0.5, 0.5), 0, 0),
    ],
)
def test_red_over_green_and_yellow_over_blue_have_the_right_sign_and_size(colour, red, yellow):
    assert float(red_over_green(plain(*colour))) == pytest.approx(red, abs=1e-6)
    assert float(yellow_over_blue(plain(*colour))) == pytest.approx(yellow, abs=1e-6)


def test_a_red_cast_on_real_images_changes_only_red_over_green(emoji):
    images = emoji[0][:40]
    cast = images * torch.tensor([1.0, 0.8, 0.9]).view(3, 1, 1)  # green is reduced twice as much as blue
    assert (red_over_green(cast) - red_over_green(images)).mean() > 0.1
    assert (yellow_over_blue(cast) - yellow_over_blue(images)).mean().abs() < 0.03


def test_only_pixels_that_are_white_in_every_channel_count_as_clipped():
    image = torch.cat(
        [plain(1.0, 1.0, 1.0), plain(1.0, 1.0, 0.9), plain(0.99, 0.985, 0.99), plain(0, 0, 0)], 3
    )
    assert float(clipped_highlights(image)) == pytest.approx(0.5)


def wave(cycles, axis):
    """Return grey stripes: a sine with `cycles` periods per image."""
    phase = torch.arange(SIZE) * (2 * torch.pi * cycles / SIZE)
    line = 0.5 + 0.4 * torch.sin(phase + 0.3)
    field = line.view(1, 1, -1, 1) if axis == 2 else line.view(1, 1, 1, -1)
    return field.expand(1, 3, SIZE, SIZE)


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("cycles", "share"), [(1, 0), (15, 0), (16, 1), (31, 1)])
def test_frequencies_of_at_least_a_quarter_cycle_per_pixel_count_as_high(axis, cycles, share):
    assert float(high_frequency_energy(wave(cycles, axis))) == pytest.approx(share, abs=1e-4)


def test_blurring_real_images_lowers_their_high_frequency_energy_and_noise_raises_it(emoji):
    from torchvision.transforms.functional import gaussian_blur

    images = emoji[0][:40]
    noisy = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    blurred, plain_, rough = (
        high_frequency_energy(x) for x in (gaussian_blur(images, [5, 5]), images, noisy)
    )
    assert (blurred < plain_).float().mean() > 0.95
    assert (plain_ < rough).float().mean() > 0.95


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize(("cycles", "share"), [(4, 1), (8, 1), (12, 1), (3, 0), (5, 0), (1, 0)])
def test_only_patterns_that_repeat_every_16_pixels_along_an_axis_count_as_a_grid(axis, cycles, share):
    assert SIZE // 4 == GRID_PIXELS
    assert float(grid_energy(wave(cycles, axis))) == pytest.approx(share, abs=1e-3)


def test_a_faint_grid_over_real_images_raises_grid_energy_more_than_other_stripes(emoji):
    images = emoji[0][:40]
    faint = torch.zeros(SIZE, SIZE)
    faint[::GRID_PIXELS] = faint[:, ::GRID_PIXELS] = 0.08
    other = torch.zeros(SIZE, SIZE)
    other[::13] = other[:, ::13] = 0.08
    gridded, plain_, striped = (grid_energy(images - x).mean() for x in (faint, 0, other))
    assert gridded > 1.5 * plain_
    # stripes whose period does not divide the image leak slightly into every frequency
    assert gridded - plain_ > 3 * (striped - plain_)


def test_grid_energy_crops_other_sizes_and_is_zero_for_a_flat_image():
    odd = wave(4, 2)[:, :, :, :50]
    assert float(grid_energy(odd)) == pytest.approx(1, abs=1e-3)
    for flat in (plain(0.3, 0.6, 0.9), plain(1.0, 1.0, 1.0), plain(0, 0, 0)):
        assert float(grid_energy(flat)) == float(high_frequency_energy(flat)) == 0
