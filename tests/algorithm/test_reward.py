import pytest
import torch
from torch.nn.functional import normalize

from srpo_core.algorithm.reward import hinge_loss, relative_reward, with_control_word


class TwoTowers:
    """A reward whose features are the colour of an image, and the letters of a text."""

    scale = 2.0

    def encode_images(self, images):
        return normalize(images.mean((2, 3)), dim=-1)

    def encode_texts(self, texts):
        return normalize(torch.tensor([[float(text.count(c)) for c in "rgb"] for text in texts]), dim=-1)


@pytest.fixture
def images():
    return torch.eye(3)[:2, :, None, None].expand(2, 3, 4, 4)


def score(images, positive, negative, k=0.0):
    texts = ([positive] * len(images), [negative] * len(images))
    return relative_reward(TwoTowers(), images, *texts, torch.full((len(images),), k)).tolist()


def test_the_wanted_word_raises_and_the_unwanted_word_lowers_the_reward(images):
    assert score(images, "r", "g") == [2.0, -2.0]


def test_without_a_discount_exchanged_words_reverse_the_sign(images):
    assert score(images, "g", "r") == [-value for value in score(images, "r", "g")]


def test_the_discount_weights_only_the_positive_side(images):
    assert score(images, "r", "g", k=0.5) == [3.0, -2.0]


def test_the_common_part_of_both_text_features_cancels(images):
    assert score(images, "r", "r") == [0.0, 0.0]


def test_there_is_no_gradient_above_the_margin():
    rewards = torch.tensor([0.2, 0.7, 0.9], requires_grad=True)
    losses = hinge_loss(rewards, 0.7)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0.5, 0, 0])
    assert rewards.grad.tolist() == [-1, 0, 0]


def test_a_control_word_is_prepended_to_each_prompt():
    assert with_control_word("Ink", ["red apple", "crab"]) == ["Ink. red apple", "Ink. crab"]
