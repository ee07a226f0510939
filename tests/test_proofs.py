"""Figures of a format's pictures, on pictures whose answers are known."""

import math

import pytest
import torch

from srpo_core.proofs import _mean_psnr


def test_pictures_that_are_equal_to_the_last_bit_do_not_count_and_where_all_are_there_is_no_figure():
    black = torch.zeros(3, 3, 8, 8)
    images = black.clone()
    images[1] += 0.1
    assert _mean_psnr(images, black) == pytest.approx(20.0, abs=1e-4)
    assert _mean_psnr(black, black) is None


def test_a_picture_that_is_not_a_number_is_no_equal_one():
    black = torch.zeros(2, 3, 8, 8)
    for broken in (torch.tensor([math.nan, 0.0]), torch.tensor([math.nan, math.nan])):
        mean = _mean_psnr(black + broken.view(2, 1, 1, 1), black)
        assert mean is not None
        assert math.isnan(mean)
