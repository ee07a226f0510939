import torch

from srpo_core.scorers.autocast import AutocastReward

TEXTS = ["Ink. red apple", "3D. crab", "penguin"]


def test_features_under_autocast_are_float32_with_unit_length_and_close_to_full_precision(reward):
    exact = reward
    half = AutocastReward(exact)
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ours, theirs = half.encode_images(images), exact.encode_images(images)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert 0 < float((ours - theirs).norm() / theirs.norm()) < 2e-2
    assert half.scale == exact.scale
    assert torch.equal(half.encode_texts(TEXTS), exact.encode_texts(TEXTS))


def test_gradients_reach_the_images_in_float32(reward):
    half = AutocastReward(reward)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (half.encode_images(images) * half.encode_texts(TEXTS[:1])).sum().backward()
    assert images.grad.dtype == torch.float32
    assert float(images.grad.abs().sum()) > 0
