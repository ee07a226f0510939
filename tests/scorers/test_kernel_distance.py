import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from srpo_core.scorers.kernel_distance import kernel_distances


def features(count, shift=0.0, seed=0):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_mean_equals_the_kid_of_torchmetrics(shift):
    ours, real = features(50, shift), features(50, seed=1)
    assert float(kernel_distances(ours, real).mean()) == pytest.approx(
        float(poly_mmd(real, ours)), rel=1e-5, abs=1e-5
    )


def test_the_distance_is_unbiased_for_equal_distributions_and_grows_with_their_shift():
    near = torch.stack(
        [kernel_distances(features(30, seed=s), features(20, seed=s + 500)).mean() for s in range(200)]
    )
    assert abs(float(near.mean())) < 3 * float(near.std()) / 200**0.5
    means = [
        float(kernel_distances(features(60, shift), features(40, seed=1)).mean()) for shift in (0.2, 1, 3)
    ]
    assert means == sorted(means)
    assert means[0] > 0


def test_there_is_one_distance_per_row_of_the_first_argument():
    narrow, wide = features(40) * 0.1, features(60, seed=1)
    assert len(kernel_distances(narrow, wide)) == 40
    assert len(kernel_distances(wide, narrow)) == 60


def test_the_standard_error_of_the_figures_matches_the_spread_between_samples():
    real = features(400, seed=99)
    samples = [kernel_distances(features(80, 0.7, seed=seed), real) for seed in range(200)]
    actual = torch.stack([sample.mean() for sample in samples]).std()
    claimed = torch.stack([sample.std() / 80**0.5 for sample in samples]).mean()
    assert float(claimed) == pytest.approx(float(actual), rel=0.15)
