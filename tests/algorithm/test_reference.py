import pytest
import torch

from srpo_core.algorithm.direct_align import branches
from srpo_core.algorithm.reference import arithmetic_of, noise_of, time_of, truncated_time


@pytest.fixture
def settings(tiny_train):
    return tiny_train.model_copy(update={"reference": True})


def test_the_time_input_is_truncated_to_thousandths_only_in_reference_mode(settings, tiny_train):
    sigma = torch.tensor([0.8789, 0.5, 1.0])
    assert truncated_time(sigma).tolist() == pytest.approx([0.878, 0.5, 1.0], abs=1e-7)
    assert torch.equal(time_of(settings)(sigma), truncated_time(sigma))
    assert torch.equal(time_of(tiny_train)(sigma), sigma)


def test_noise_is_rounded_to_bfloat16_only_in_reference_mode(settings, tiny_train):
    noise = torch.randn(2, 4, 8)
    assert torch.equal(noise_of(noise, tiny_train), noise)
    assert torch.equal(noise_of(noise, settings), noise.bfloat16().float())


def test_products_are_rounded_for_samples_whose_index_is_a_python_number_in_the_reference(settings):
    level, eps = torch.full((4, 1, 1), 0.7512), torch.randn(4, 3, 5).bfloat16().float()
    at = branches([99, 100, 101, 500], 1000, 0.9)
    rounded = (level.bfloat16() * eps.bfloat16()).float()
    arithmetic = arithmetic_of(at["inversion"], settings)
    for times, expected in ((arithmetic.at_s, [1, 1, 0, 0]), (arithmetic.at_t, [0, 1, 0, 0])):
        product = times(level, eps)
        for row, is_rounded in enumerate(expected):
            assert torch.equal(product[row], (rounded if is_rounded else level * eps)[row])
    assert torch.equal(arithmetic_of(at["denoise"], settings).at_s(level, eps), level * eps)
