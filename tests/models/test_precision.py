import pytest
import torch

from srpo_core.models.precision import tf32


def precisions():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


def test_tf32_is_set_for_products_and_convolutions_and_restored():
    before = precisions()
    with tf32(enabled=True):
        assert precisions() == ("tf32", "tf32")
        with pytest.raises(KeyError), tf32(enabled=False):
            assert precisions() == ("ieee", "ieee"), "torch's default for convolutions is TF32"
            raise KeyError
        assert precisions() == ("tf32", "tf32")
    assert precisions() == before


def test_the_arithmetic_of_a_cpu_stays_in_float32():
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    expected = a @ b
    with tf32(enabled=True):
        assert torch.equal(a @ b, expected)
        assert torch.backends.mkldnn.matmul.fp32_precision != "tf32"
