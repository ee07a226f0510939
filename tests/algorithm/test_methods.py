"""Every method on a model that is small enough to compute the result by hand."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from linear_base import SHAPE, STEPS, Attentive, Colours, Linear, gradient, shares, with_

from srpo_core.algorithm import METHODS
from srpo_core.algorithm.absolute import consecutive, decaying_weights, scored_texts
from srpo_core.algorithm.method import TrainBatch
from srpo_core.algorithm.rollout import rollout, starting_images
from srpo_core.algorithm.schedule import shifted_sigmas, training_grid
from srpo_core.algorithm.srpo import draw_midpoints
from srpo_core.protocols import Condition
from srpo_core.randomness import Draws
from srpo_core.training.learner import Learner
from srpo_core.training.micro_batches import num_micro_batches


@pytest.fixture
def batch():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    condition = Condition({"text": torch.zeros(2, 1, 1), "pooled": torch.zeros(2, 1)})
    return TrainBatch(["r", "gg"], condition, noise, Draws(0, 1, [0, 1]), {}, "rrr", "bbb")


@pytest.fixture
def settings(tiny_train):
    rollout = tiny_train.rollout.model_copy(update={"num_inference_steps": STEPS})
    return tiny_train.model_copy(update={"rollout": rollout, "batch_size": 2})


@pytest.fixture(autouse=True)
def _double_latents(monkeypatch):
    """Keep float64: the rollout casts bfloat16 noise to float32, which would round here."""
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)


def unrolled(batch, settings, free):
    """Return the gradient of the plain loop, detached after the first `free` steps."""
    model, sigmas, z = Linear(), shifted_sigmas(STEPS, settings.rollout.shift), batch.noise
    for step in range(STEPS):
        z = z + (sigmas[step + 1] - sigmas[step]) * model.velocity(z, sigmas[step].expand(2), 1, None)
        z = z.detach() if step < free else z
    reward = Colours()
    images = model.decode(z).clamp(0, 1)
    cosines = (reward.encode_images(images) * reward.encode_texts(scored_texts(batch, settings))).sum(-1)
    torch.relu(settings.direct_align.margin - cosines).sum().backward()
    return model.transformer.weight.grad


@pytest.mark.parametrize("last_steps", [1, 2, STEPS])
def test_draft_k_has_the_gradient_of_the_loop_detached_before_its_last_k_steps(batch, settings, last_steps):
    ours, _, _ = gradient("draft_k", batch, with_(settings, "draft", last_steps=last_steps))
    assert torch.allclose(ours, unrolled(batch, settings, STEPS - last_steps), rtol=1e-6, atol=1e-12)


def test_fewer_trained_steps_give_a_different_gradient(batch, settings):
    assert not torch.allclose(unrolled(batch, settings, 0), unrolled(batch, settings, STEPS - 1), rtol=1e-2)


def test_draft_lv_with_one_variation_is_draft_with_one_step(batch, settings):
    ours, terms, _ = gradient("draft_lv", batch, with_(settings, "draft", variations=1))
    assert len(terms) == 1
    assert torch.allclose(ours, unrolled(batch, settings, STEPS - 1), rtol=1e-6, atol=1e-12)


def test_draft_lv_averages_variations_with_independent_noise(batch, settings):
    count = 3
    ours, terms, _ = gradient("draft_lv", batch, with_(settings, "draft", variations=count))
    assert len({float(term.losses.detach().sum()) for term in terms}) == len(terms) == count
    sigmas = shifted_sigmas(STEPS, settings.rollout.shift)
    last, end = sigmas[-2:]
    states = [rollout(Linear().velocity, batch.noise, batch.condition, sigmas=sigmas[:-1], guidance=1)]
    image = states[0] + ((end - last) * Linear().velocity(states[0], last.expand(2), 1, None)).detach()
    for variation in range(1, count):
        fresh = batch.draws.noise(("variation", variation), SHAPE[1:])
        states.append(last * fresh + (1 - last) * image)
    each = []
    for z in states:
        model, reward = Linear(), Colours()
        images = model.decode(z + (end - last) * model.velocity(z, last.expand(2), 1, None)).clamp(0, 1)
        cosines = (reward.encode_images(images) * reward.encode_texts(scored_texts(batch, settings))).sum(-1)
        torch.relu(settings.direct_align.margin - cosines).sum().backward()
        each.append(model.transformer.weight.grad)
    assert torch.allclose(ours, torch.stack(each).mean(0), rtol=1e-6, atol=1e-12)
    assert not any(torch.allclose(each[0], other, rtol=1e-2) for other in each[1:])


def test_refl_trains_one_late_model_call_and_predicts_the_image_from_it(batch, settings):
    settings = with_(settings, "refl", late_share=0.4)
    (stops,) = {tuple(batch.draws.integers(("late step",), 3, 4))}
    ours, _, model = gradient("refl", batch, settings)
    assert [trained for trained, _ in model.calls] == [False] * (STEPS - 1) + [True]
    expected, sigmas = Linear(), shifted_sigmas(STEPS, settings.rollout.shift)
    states = [
        rollout(
            expected.velocity,
            batch.noise[row : row + 1],
            batch.condition[[row]],
            sigmas=sigmas[: stop + 1],
            guidance=1,
        )
        for row, stop in enumerate(stops)
    ]
    z, sigma = torch.cat(states), sigmas[list(stops)]
    images = expected.decode(z - sigma[:, None, None] * expected.velocity(z, sigma, 1, None)).clamp(0, 1)
    reward = Colours()
    cosines = (reward.encode_images(images) * reward.encode_texts(scored_texts(batch, settings))).sum(-1)
    (settings.direct_align.margin - cosines).sum().backward()
    assert torch.allclose(ours, expected.transformer.weight.grad, rtol=1e-6, atol=1e-12)


def test_refl_includes_the_first_step_of_its_late_range(batch, settings):
    """(1 - 0.7) * 10 is 3.0000000000000004 in floating point, and step 3 must be included."""
    longer = settings.model_copy(
        update={"rollout": settings.rollout.model_copy(update={"num_inference_steps": 10})}
    )
    bounds = []

    class Recorded(Draws):
        def integers(self, key, low, high):
            bounds.append((low, high))
            return super().integers(key, low, high)

    share = TrainBatch(**{**vars(batch), "draws": Recorded(0, 1, list(range(len(batch.noise))))})
    gradient("refl", share, with_(longer, "refl", late_share=0.7))
    assert bounds == [(3, 9)]


@pytest.mark.parametrize("name", list(METHODS))
def test_the_number_of_model_calls_does_not_depend_on_the_draws(batch, settings, name):
    """A sharded model blocks forever if one worker calls it once more than the others."""
    settings = with_(settings, "refl", late_share=1.0)
    counts = set()
    for sample in range(8):
        share = TrainBatch(**{**vars(batch), "draws": Draws(0, 1, [sample, sample + 8])})
        counts.add(tuple(trained for trained, _ in gradient(name, share, settings)[2].calls))
    assert len(counts) == 1


@pytest.mark.parametrize("name", ["srpo", "direct_align", "direct_align_aggregated"])
def test_with_a_perfect_model_the_scored_image_equals_the_original_image(batch, settings, name):
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch = TrainBatch(**{**vars(batch), "given": dict(enumerate(x0))})
    model, seen = Linear(), []

    def perfect(latents, *_):
        return (batch.noise - x0).repeat(len(latents) // 2, 1, 1) + 0 * model.transformer(latents)

    decode = model.decode
    model.velocity = perfect
    model.decode = lambda latents: seen.append(latents.detach()) or decode(latents)
    gradient(name, batch, settings, model)
    assert seen
    for latents in seen:
        assert torch.allclose(latents, x0.repeat(len(latents) // 2, 1, 1), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("together", [False, True])
def test_a_step_makes_the_number_of_calls_that_its_cost_states(batch, settings, name, together):
    settings = settings.model_copy(update={"pairs_per_rollout": 2, "batch_branches": together})
    settings = with_(settings, "draft", last_steps=3, variations=2)
    settings = with_(settings, "aggregate", levels=3)
    model, decoded = Linear(), []
    decode = model.decode
    model.decode = lambda latents: decoded.append(len(latents)) or decode(latents)
    gradient(name, batch, settings, model)
    cost, size = METHODS[name].cost(settings), len(batch.noise)
    rows = {trained: [n for grad, n in model.calls if grad is trained] for trained in (False, True)}
    assert sum(rows[False]) == size * cost.rollout_calls
    assert sum(rows[True]) == size * (cost.trained_calls + cost.recomputed_calls)
    assert set(rows[True]) == {size * cost.images_per_call}
    assert sum(decoded) == size * cost.scored_images


class Announced(Linear):
    """A base that requires every call without gradients to have the inputs for which it was prepared."""

    inputs = None

    @contextmanager
    def prepared(self, condition, *, times, guidance):
        self.inputs = (condition, set(times.tolist()), guidance)
        yield
        self.inputs = None

    def velocity(self, latents, time, guidance, condition):
        if not torch.is_grad_enabled():
            of_condition, times, of_guidance = self.inputs
            assert condition is of_condition
            assert len(condition) == len(latents)
            assert set(time.tolist()) <= times
            assert guidance == of_guidance
        return super().velocity(latents.double(), time, guidance, condition)  # the reference rounds noise


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("reference", [False, True])
def test_every_call_without_gradients_has_the_inputs_that_the_base_was_prepared_for(
    batch, settings, name, together, reference
):
    changes = {"batch_branches": together, "reference": reference}
    _, _, model = gradient(name, batch, settings.model_copy(update=changes), Announced())
    assert (False, 2) in model.calls or (False, 2 * settings.dance_grpo.group_size) in model.calls


def test_only_samples_without_a_real_image_are_rolled_out(batch, settings):
    real = TrainBatch(**{**vars(batch), "given": {1: torch.full(SHAPE[1:], 7.0, dtype=torch.float64)}})
    model = Linear()
    x0, _ = starting_images(model, real, settings)
    assert model.calls == [(False, 1)] * STEPS
    generated, _ = starting_images(Linear(), batch, settings)
    assert torch.allclose(x0[0], generated[0])
    assert bool((x0[1] == 7).all())


def test_branches_in_one_call_have_the_same_gradient_with_half_the_calls(batch, settings):
    together, one, model = gradient("srpo", batch, settings)
    apart, two, other = gradient("srpo", batch, settings.model_copy(update={"batch_branches": False}))
    assert torch.allclose(together, apart, rtol=1e-6, atol=1e-12)
    assert [sum(trained for trained, _ in m.calls) for m in (model, other)] == [1, 2]
    assert (len(one), len(two)) == (1, 2)
    assert torch.allclose(one[0].rewards["inversion"], two[1].rewards["inversion"])


def test_pairs_of_the_same_rollout_are_averaged(batch, settings):
    shared, _, model = gradient("srpo", batch, settings.model_copy(update={"pairs_per_rollout": 3}))
    assert [trained for trained, _ in model.calls] == [False] * STEPS + [True] * 3
    singles = []
    for pair in range(3):
        draws = SimpleNamespace(
            integers=lambda _, low, high, p=pair: batch.draws.integers(("midpoint", p), low, high)
        )
        alone = TrainBatch(**{**vars(batch), "draws": draws})
        singles.append(gradient("srpo", alone, settings)[0])
    assert torch.allclose(shared, torch.stack(singles).mean(0), rtol=1e-6, atol=1e-12)
    assert not torch.allclose(singles[0], singles[1])


EVERY_START = [(name, "generated") for name in METHODS] + [
    (name, "real") for name, method in METHODS.items() if method.real_images
]


@pytest.mark.parametrize(("name", "source"), EVERY_START)
def test_a_batch_has_the_sum_of_its_samples_gradients(settings, name, source):
    """Each sample keeps its prompt, noise, levels and image."""
    share, real = shares(2), (0, 1) if source == "real" else ()
    whole, first, second = (
        gradient(name, share(rows, real), settings, Attentive())[0] for rows in ([0, 1], [0], [1])
    )
    assert torch.allclose(whole, first + second, rtol=1e-6, atol=1e-12)
    assert not torch.allclose(first, second, rtol=1e-2)


@pytest.mark.parametrize(("name", "source"), EVERY_START)
def test_micro_batches_have_the_gradient_and_the_figures_of_the_whole_batch(settings, name, source):
    """Two ranks have shares of three images and of two, so in micro-batches of one the second repeats an image."""
    share, real = shares(5), (0, 3, 4) if source == "real" else ()
    found = []
    for micro, world in ((None, 1), (2, 1), (1, 2)):
        train = settings.model_copy(
            update={"batch_size": 5, "micro_batch_size": micro, "pairs_per_rollout": 2}
        )
        model, count = Attentive(), num_micro_batches(train, world)
        learner = Learner(model, Colours(), None, train, METHODS[name].run)
        figures = [
            learner._backward(learner._parts(share(list(range(rank, 5, world)), real), count))
            for rank in range(world)
        ]
        sums = {key: sum(float(one[key]) for one in figures) for key in figures[0]}
        found.append((model.transformer.weight.grad, sums, max(size for _, size in model.calls)))
    (whole, figures, _), *split = found
    for other, sums, _ in split:
        assert float((other - whole).norm()) < 1e-12 * float(whole.norm())
        assert sums == pytest.approx(figures, rel=1e-12)
    at_once = METHODS[name].cost(settings).images_per_call
    assert [most for _, _, most in split] == [2 * at_once, at_once]


def written_out(batch, settings, midpoints, weight=1.0):
    """Return the gradient of Direct-Align's denoise branch by the paper's formulas."""
    model, reward, align = Linear(), Colours(), settings.direct_align
    sigmas = shifted_sigmas(STEPS, settings.rollout.shift)
    x0 = rollout(Linear().velocity, batch.noise, batch.condition, sigmas=sigmas, guidance=1)
    grid = training_grid(align.schedule_steps, settings.rollout.shift, align.first, align.last, align.grid)
    k = int((1 - align.ratio) * align.grid) + 1
    from_level, to_level = [], []
    for m in midpoints:  # counted from the clean end; the denoise branch starts k points noisier
        from_level.append(grid[align.grid - m - min(k, align.grid - m, m)])
        to_level.append(grid[align.grid - m])
    s, t = torch.stack(from_level), torch.stack(to_level)
    assert bool((s > t).all())
    s, t = s[:, None, None], t[:, None, None]
    x = s * batch.noise + (1 - s) * x0
    y = x + (t - s) * model.velocity(x, s[:, 0, 0], align.guidance_scale, batch.condition)
    images = model.decode((y - t * batch.noise) / (1 - t)).clamp(0, 1)
    cosines = (reward.encode_images(images) * reward.encode_texts(scored_texts(batch, settings))).sum(-1)
    (weight * torch.relu(align.margin - cosines)).sum().backward()
    return model.transformer.weight.grad


def test_direct_align_has_the_gradient_of_the_papers_formulas(batch, settings):
    (midpoints,) = draw_midpoints(batch.draws, settings)
    ours, _, _ = gradient("direct_align", batch, settings)
    assert torch.allclose(ours, written_out(batch, settings, midpoints), rtol=1e-5, atol=1e-10)


def test_two_levels_of_the_aggregated_reward_equal_two_weighted_denoise_branches(batch, settings):
    two = with_(settings, "aggregate", levels=2, decay=0.5)
    align = settings.direct_align
    (first,) = draw_midpoints(batch.draws, settings)
    k = int((1 - align.ratio) * align.grid) + 1
    second = [m - min(k, m - 5) for m in first]
    expected = written_out(batch, settings, first) + written_out(batch, settings, second, weight=0.5)
    ours, _, _ = gradient("direct_align_aggregated", batch, two)
    assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-10)


def test_the_weights_of_the_aggregated_reward_decay_from_the_noisiest_level():
    assert decaying_weights(4, 0.5) == [1, 0.5, 0.25, 0.125]


def test_the_levels_of_the_aggregated_reward_are_one_step_apart_and_stay_on_the_grid():
    assert [consecutive([900, 105, 5], level, 3, 100) for level in range(3)] == [
        [900, 105, 5],
        [800, 55, 5],
        [700, 5, 5],
    ]


def test_one_level_of_the_aggregated_reward_equals_direct_align(batch, settings):
    single = with_(settings, "aggregate", levels=1)
    ours, _, _ = gradient("direct_align_aggregated", batch, single)
    assert torch.allclose(ours, gradient("direct_align", batch, settings)[0])


def test_the_terms_of_the_aggregated_reward_are_weighted_by_lambda(batch, settings):
    decaying = with_(settings, "aggregate", levels=3, decay=0.5)
    even = with_(settings, "aggregate", levels=3, decay=1.0)
    weighted, plain = (gradient("direct_align_aggregated", batch, s)[1] for s in (decaying, even))
    for term, other, weight in zip(weighted, plain, (1, 0.5, 0.25), strict=True):
        assert torch.allclose(term.losses, weight * other.losses)


def test_the_texts_of_an_absolute_reward_can_be_configured(batch, settings):
    assert scored_texts(batch, settings) == ["rrr. r", "rrr. gg"]
    assert scored_texts(batch, settings.model_copy(update={"reward_text": "plain"})) == ["r", "gg"]
