import torch

from srpo_core.scorers.autocast import AutocastReward, with_autocast
from srpo_core.scorers.mixed import MixedReward

TEXTS = ["Ink. red apple", "3D. crab", "penguin"]


def seeded_images(count):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_scores_under_autocast_are_float32_and_close_to_full_precision(reward):
    images = seeded_images(3)
    ours, theirs = AutocastReward(reward).score(images, TEXTS), reward.score(images, TEXTS)
    assert ours.dtype == torch.float32
    assert 0 < float((ours - theirs).abs().max()) < 2e-2


def test_features_under_autocast_have_unit_length_and_those_of_texts_are_exact(family):
    """A relative reward is a small difference of cosines, so their lengths must not be rounded."""
    from srpo_core.scorers.open_clip import load_open_clip

    exact, under = load_open_clip(family / "reward"), load_open_clip(family / "reward")
    with torch.autocast("cpu", torch.bfloat16):
        features, texts = under.encode_images(seeded_images(3)), under.encode_texts(TEXTS)
    assert features.dtype == torch.float32
    assert torch.allclose(features.norm(dim=-1), torch.ones(3), atol=1e-6)
    assert not torch.equal(features, exact.encode_images(seeded_images(3)))
    assert torch.equal(texts, exact.encode_texts(TEXTS))


def test_gradients_reach_the_images_in_float32(reward):
    images = seeded_images(1).requires_grad_()
    AutocastReward(reward).score(images, TEXTS[:1]).sum().backward()
    assert images.grad.dtype == torch.float32
    assert float(images.grad.abs().sum()) > 0


def test_each_reward_of_a_mix_runs_under_autocast_and_the_sum_is_exact(reward):
    mix = with_autocast(MixedReward({"a": reward, "b": reward}, {"a": 0.25, "b": 0.5}))
    each = mix.score_each(seeded_images(3), TEXTS)
    alone = AutocastReward(reward).score(seeded_images(3), TEXTS)
    assert torch.equal(each["a"], alone)
    assert torch.allclose(mix.total(each), 0.75 * alone, atol=1e-7)
