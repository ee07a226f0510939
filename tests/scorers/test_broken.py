"""One definition of a broken image, on made-up scores whose fit is known and on real images."""

import math

import pytest
import torch

from srpo_core.scorers.broken import Evidence, Scores, broken, faults, fit, lost, outside, statistics

NUM_PROMPTS, SEEDS = 6, 3
PROMPTS = torch.arange(NUM_PROMPTS).repeat_interleave(SEEDS)


def base_scores(gap=1.0):
    """Return scores by which an image scores `gap` for its own prompt and, with little spread, 0 for the others."""
    texts = torch.eye(NUM_PROMPTS)[PROMPTS]
    generator = torch.Generator().manual_seed(0)
    return Scores(gap * texts + 0.01 * torch.randn(texts.shape, generator=generator), texts)


def evidence(scores, figures=None):
    given = torch.zeros(len(PROMPTS), 2) if figures is None else figures
    return Evidence(PROMPTS, [scores], given)


def other_prompts(scores):
    return Scores(scores.images.roll(SEEDS, 0), scores.texts)


def test_the_bases_images_fit_by_one_and_images_of_other_prompts_by_zero():
    base = base_scores()
    assert fit(base, PROMPTS, base, PROMPTS).tolist() == pytest.approx([1] * 18, abs=0.05)
    assert fit(other_prompts(base), PROMPTS, base, PROMPTS).tolist() == pytest.approx([0] * 18, abs=0.05)
    half = Scores((base.images + other_prompts(base).images) / 2, base.texts)
    assert fit(half, PROMPTS, base, PROMPTS).tolist() == pytest.approx([0.5] * 18, abs=0.05)


def test_the_fit_does_not_depend_on_the_scale_or_the_zero_of_the_scorer():
    base = base_scores()
    scaled = Scores(7 * base.images - 3, base.texts)
    mixed = Scores(base.images.roll(1, 0), base.texts)
    expected = fit(mixed, PROMPTS, base, PROMPTS)
    found = fit(Scores(7 * mixed.images - 3, base.texts), PROMPTS, scaled, PROMPTS)
    torch.testing.assert_close(found, expected)


def test_the_fit_needs_neither_the_same_images_nor_the_same_number_of_them_per_prompt_as_the_base():
    base = base_scores()
    rows = torch.tensor([16, 4, 5])
    own = Scores(base.images[rows], base.texts[rows])
    expected = fit(base, PROMPTS, base, PROMPTS)[rows]
    torch.testing.assert_close(fit(own, PROMPTS[rows], base, PROMPTS), expected)


def test_a_prompt_that_the_scorer_does_not_recognise_in_the_bases_own_images_is_not_judged_by_it():
    base = base_scores()
    base.images[PROMPTS == 2] = base.images[PROMPTS == 3]
    found = fit(base, PROMPTS, base, PROMPTS)
    assert found[PROMPTS == 2].isnan().all()
    assert found[PROMPTS != 2].isfinite().all()
    assert not faults(evidence(base), evidence(base)).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_or_a_statistic_that_is_not_a_number_is_broken(value):
    base = base_scores()
    damaged = Scores(base.images.clone(), base.texts)
    damaged.images[4, 1] = value
    assert broken(evidence(damaged), evidence(base)).nonzero().tolist() == [[4]]
    figures = torch.zeros(len(PROMPTS), 2)
    figures[7, 1] = value
    assert broken(evidence(base, figures), evidence(base)).nonzero().tolist() == [[7]]


def test_a_statistic_may_leave_the_bases_range_by_half_its_width():
    base = torch.tensor([[0.0, 5.0], [2.0, 5.0]])
    own = torch.tensor([[-0.99, 5.0], [-1.01, 5.0], [2.99, 5.0], [3.01, 5.0], [1.0, 5.01]])
    assert outside(own, base).tolist() == [False, True, False, True, True]


def test_what_the_base_itself_cannot_do_is_not_lost():
    base = base_scores()
    base.images[4] = 0  # one of the three images of this prompt fails
    assert broken(evidence(base), evidence(base)).nonzero().tolist() == [[4]]
    assert not lost(evidence(base), evidence(base)).any()
    worse = Scores(base.images.clone(), base.texts)
    worse.images[10] = 0
    assert lost(evidence(worse), evidence(base)).nonzero().tolist() == [[10]]


def test_images_of_noise_one_colour_or_a_blur_are_outside_the_range_of_real_ones(emoji):
    images, _, _ = emoji
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 64, 64, generator=generator)
    black, blurred = torch.zeros(1, 3, 64, 64), torch.nn.functional.avg_pool2d(images[:1], 9, 1, 4)
    own = statistics(torch.cat([noise, black, blurred, images[:1]]))
    assert outside(own, statistics(images)).tolist() == [True, True, True, False]
