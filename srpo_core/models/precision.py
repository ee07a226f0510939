"""The precision of float32 arithmetic on a GPU, which torch keeps for the whole process."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tf32(*, enabled: bool) -> Iterator[None]:
    """Within the context, round the inputs of float32 matrix products and convolutions on a GPU to TF32, or do not.

    TF32 has 10 bits after the point, as float16, and float32's range; sums are in float32. A CPU computes in float32
    either way. Without this context torch uses TF32 for convolutions and not for matrix products.
    """
    import torch

    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolution.fp32_precision
    matmul.fp32_precision = convolution.fp32_precision = "tf32" if enabled else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before
