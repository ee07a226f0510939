import pytest
import torch
from torch.nn.functional import normalize

from srpo_core.algorithm.reward import (
    absolute_reward,
    by_name,
    hinge_loss,
    relative_reward,
    with_control_word,
)
from srpo_core.scorers.mixed import MixedReward


class TwoTowers:
    """A reward whose features are the colour of an image, and the letters of a text."""

    def score(self, images, texts):
        seen = normalize(images.mean((2, 3)), dim=-1)
        read = normalize(torch.tensor([[float(text.count(c)) for c in "rgb"] for text in texts]), dim=-1)
        return 2 * (seen.repeat(len(texts) // len(images), 1) * read).sum(1)


class Curved:
    """A reward that is no cosine: a curve of the colours, shifted by the length of the text."""

    def score(self, images, texts):
        colours = images.mean((2, 3)).square().sum(1).repeat(len(texts) // len(images))
        return torch.tanh(colours + torch.tensor([float(len(text)) for text in texts]) / 10)


@pytest.fixture
def images():
    return torch.eye(3)[:2, :, None, None].expand(2, 3, 4, 4)


def score(images, positive, negative, k=0.0):
    texts = ([positive] * len(images), [negative] * len(images))
    return relative_reward(TwoTowers(), images, *texts, torch.full((len(images),), k)).total.tolist()


def test_the_wanted_word_raises_and_the_unwanted_word_lowers_the_reward(images):
    assert score(images, "r", "g") == [2.0, -2.0]


def test_without_a_discount_exchanged_words_reverse_the_sign(images):
    assert score(images, "g", "r") == [-value for value in score(images, "r", "g")]


def test_the_discount_weights_only_the_positive_side(images):
    assert score(images, "r", "g", k=0.5) == [3.0, -2.0]


def test_the_common_part_of_both_text_features_cancels(images):
    assert score(images, "r", "r") == [0.0, 0.0]


def test_any_score_is_relative_by_the_same_formula(images):
    k = torch.tensor([0.5, 0.1])
    rewards = relative_reward(Curved(), images, ["rr", "ggg"], ["b", "bb"], k)
    wanted, unwanted = (Curved().score(images, texts) for texts in (["rr", "ggg"], ["b", "bb"]))
    assert rewards.total.tolist() == pytest.approx(((1 + k) * wanted - unwanted).tolist())
    assert rewards.each == {}


def test_a_mix_is_the_weighted_sum_and_keeps_each_reward_by_its_name(images):
    mix = MixedReward({"towers": TwoTowers(), "curved": Curved()}, {"towers": 0.25, "curved": 3.0})
    inputs = (images.requires_grad_(), ["r", "gg"], ["b", "r"], torch.tensor([0.5, 0.1]))
    found = relative_reward(mix, *inputs)
    alone = {name: relative_reward(one, *inputs).total for name, one in mix.rewards.items()}
    assert found.total.tolist() == pytest.approx((alone["towers"] / 4 + 3 * alone["curved"]).tolist())
    assert {name: values.tolist() for name, values in found.each.items()} == {
        name: values.tolist() for name, values in alone.items()
    }
    assert found.total.requires_grad
    assert not any(values.requires_grad for values in found.each.values())
    plain = absolute_reward(mix, images, ["r", "gg"])
    assert plain.total.tolist() == pytest.approx(mix.score(images, ["r", "gg"]).tolist())
    assert by_name("wanted", plain).keys() == {"wanted", "wanted_towers", "wanted_curved"}


def test_there_is_no_gradient_above_the_margin():
    rewards = torch.tensor([0.2, 0.7, 0.9], requires_grad=True)
    losses = hinge_loss(rewards, 0.7)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.5, 0, 0])
    assert rewards.grad.tolist() == [-1, 0, 0]


def test_a_control_word_is_prepended_to_each_prompt():
    assert with_control_word("Ink", ["red apple", "crab"]) == ["Ink. red apple", "Ink. crab"]
