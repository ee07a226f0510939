"""Distance of images and noise in latents, on inputs with known results."""

import math

import pytest
import torch

from srpo_core.fidelity.image_distance import noise_level, psnr, ssim


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_difference_of_a_tenth_everywhere_is_20_db():
    black = torch.zeros(2, 3, 16, 16)
    assert psnr(black + 0.1, black).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)
    assert math.isinf(float(psnr(black, black)[0]))


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert ssim(image, image).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    little, much = (ssim(image + size * noise(2, 3, 32, 32), image) for size in (0.05, 0.3))
    assert bool((little > much + 0.2).all())
    assert bool((little < 1).all())


def test_two_flat_images_differ_only_by_brightness():
    """With no variance the formula is (2xy + c1) / (x² + y² + c1)."""
    x, y = 0.4, 0.5
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert float(ssim(torch.full((1, 3, 16, 16), x), torch.full((1, 3, 16, 16), y))) == pytest.approx(
        expected, abs=1e-3
    )


def test_ssim_of_an_image_and_its_inverse_is_negative():
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert float(ssim(1 - image, image)) < -0.5


def test_the_noise_level_is_the_standard_deviation_of_the_noise_on_any_slope():
    ramp = torch.linspace(0, 5, 64).expand(2, 4, 64, 64)
    for size in (0.1, 0.5):
        assert noise_level(ramp + size * noise(2, 4, 64, 64)).tolist() == pytest.approx(
            [size, size], rel=0.05
        )
    assert noise_level(ramp).max() < 1e-5
