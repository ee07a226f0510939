import pytest
import torch
from open_clip.transformer import VisionTransformer

from srpo_core.scorers.vit_forward import class_feature, is_plain


def tower(**changes):
    torch.manual_seed(0)
    options = {
        "image_size": 32,
        "patch_size": 8,
        "width": 24,
        "layers": 3,
        "heads": 2,
        "mlp_ratio": 4.0,
        "output_dim": 12,
    }
    return VisionTransformer(**options | changes).requires_grad_(requires_grad=False).eval()


def feature_and_gradient(forward, pixels):
    pixels = pixels.clone().requires_grad_()
    feature = forward(pixels)
    feature.square().sum().backward()
    return feature.detach(), pixels.grad


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"layers": 1}, {"no_ln_pre": True}, {"ls_init_value": 0.3}])
def test_feature_and_gradient_equal_those_of_open_clip(changes, count):
    visual, pixels = tower(**changes), torch.randn(count, 3, 32, 32)
    assert is_plain(visual)
    feature, gradient = feature_and_gradient(visual, pixels)
    our_feature, our_gradient = feature_and_gradient(lambda x: class_feature(visual, x), pixels)
    assert relative_error(our_feature, feature) < 1e-6
    assert relative_error(our_gradient, gradient) < 1e-6
    if count == 1:  # for a batch, open_clip multiplies each token separately and sums in another order
        torch.testing.assert_close(our_feature, feature, rtol=1e-6, atol=1e-6)


def test_under_autocast_the_gradient_is_float32_and_nearly_the_same():
    def in_bfloat16(pixels):
        with torch.autocast("cpu", torch.bfloat16):
            feature = class_feature(visual, pixels)
        return feature.float()  # backward runs outside autocast, as in a training step

    visual, pixels = tower(), torch.randn(2, 3, 32, 32)
    feature, gradient = feature_and_gradient(lambda x: class_feature(visual, x), pixels)
    our_feature, our_gradient = feature_and_gradient(in_bfloat16, pixels)
    assert our_gradient.dtype == torch.float32
    assert 0 < relative_error(our_feature, feature) < 0.02
    assert 0 < relative_error(our_gradient, gradient) < 0.03


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_type": "avg"},
        {"final_ln_after_pool": True},
        {"patch_size": 7},
        {"output_tokens": True},
        {"qk_norm": True},
    ],
)
def test_a_tower_with_other_options_needs_its_own_forward(changes):
    assert not is_plain(tower(**changes))


def test_a_tower_in_training_mode_needs_its_own_forward():
    assert not is_plain(tower().train())
    assert not is_plain(torch.nn.Identity())


def test_a_tower_that_is_not_frozen_needs_its_own_forward():
    visual = tower()
    visual.conv1.requires_grad_()
    assert not is_plain(visual)
