import pytest
import torch

from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize


def inputs(height, width):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_an_image_of_the_right_size_is_not_changed():
    images = inputs(64, 64)
    assert torch.equal(fit(images, 64), images)


@pytest.mark.parametrize(("height", "width"), [(96, 48), (48, 96), (20, 33)])
def test_the_shorter_side_is_resized_and_the_image_is_center_cropped(height, width):
    images = inputs(height, width)
    scale = 32 / min(height, width)
    resized_size = (int(height * scale), int(width * scale))
    resized = torch.nn.functional.interpolate(images, resized_size, mode="bicubic", antialias=True)
    top, left = round((resized_size[0] - 32) / 2), round((resized_size[1] - 32) / 2)
    expected = resized[:, :, top : top + 32, left : left + 32]
    assert fit(images, 32).shape == (2, 3, 32, 32)
    assert torch.allclose(fit(images, 32), expected, atol=1e-6)


def test_normalization_is_per_channel_and_exact():
    mean = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert torch.equal(normalize(mean, CLIP_MEAN, CLIP_STD), torch.zeros(1, 3, 4, 4))
    one_deviation = mean + torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    assert torch.allclose(normalize(one_deviation, CLIP_MEAN, CLIP_STD), torch.ones(1, 3, 4, 4), atol=1e-6)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 8), (12, 20, 32), (33, 20, 16)])
def test_the_gradient_equals_that_of_a_linear_map(height, width, size):
    images = inputs(height, width).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: normalize(fit(x, size), CLIP_MEAN, CLIP_STD).sum((2, 3)), images, fast_mode=True
    )


@pytest.mark.parametrize(("height", "width"), [(64, 64), (45, 20), (300, 225)])
def test_the_gradient_equals_that_of_torchs_resize(height, width):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    weights = torch.randn(2, 3, 32, 32)
    gradients = []
    for forward in (
        lambda x: center_crop(
            resize(x, [32], interpolation=InterpolationMode.BICUBIC, antialias=True), [32, 32]
        ),
        lambda x: fit(x, 32),
    ):
        images = inputs(height, width).requires_grad_()
        (forward(images) * weights).sum().backward()
        gradients.append(images.grad)
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-6


def test_constants_and_matrices_are_copied_to_a_device_once():
    """Such a copy would wait for the device at each step. The meta device stands for a GPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    copies = []
    for _ in range(2):
        names = []
        images = torch.rand(1, 3, 37, 29, device="meta", requires_grad=True)
        with Copies():
            normalize(fit(images, 11), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)).sum().backward()
        copies.append(names.count("_to_copy"))
    assert copies == [4, 0], "the matrices of two sides, mean and deviation"
