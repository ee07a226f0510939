"""Add a new reward and a new metric by one entry each, and check that all parts of the project support them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srpo_core.algorithm.direct_align import branches
from srpo_core.algorithm.srpo import discounts, draw_midpoints
from srpo_core.config import (
    RewardSettings,
    ScorerSettings,
    load_settings,
    parse_settings,
    patched,
    read_values,
)
from srpo_core.errors import ConfigError, GateError
from srpo_core.plan import GB, TERA, Cluster, make_plan
from srpo_core.preflight.consistency import require_consistent
from srpo_core.scorers import SCORERS, ScorerEntry
from srpo_core.scorers.broken import Evidence, faults
from srpo_core.scorers.canaries import Example, require_answers, require_known_answers
from srpo_core.scorers.metrics import (
    METRICS,
    Metric,
    MetricContext,
    check_metrics,
    finish,
    measure,
    metric_notes,
)
from srpo_core.scorers.metrics.broken_images import evidence

MIXED = ("open_clip", "brightness")
ROOT = Path(__file__).resolve().parents[2]


class Colours(torch.nn.Module):
    """A reward that is no cosine: two layers on the mean colour and the share of the letters i, n, k of a text."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 8, bias=False).requires_grad_(requires_grad=False)
        self.last = torch.nn.Linear(8, 1, bias=False).requires_grad_(requires_grad=False)

    def score(self, images, texts):
        colours = images.mean((2, 3)).repeat(len(texts) // len(images), 1)
        letters = [[text.lower().count(letter) / max(len(text), 1) for letter in "ink"] for text in texts]
        features = torch.cat([colours, torch.tensor(letters, device=images.device)], 1)
        return torch.tanh(self.last(torch.relu(self.first(features)))[:, 0])


class Brightness(torch.nn.Module):
    """A reward that does not read texts."""

    def score(self, images, texts):
        return images.mean((1, 2, 3)).repeat(len(texts) // len(images))


def load_colours(path):
    assert Path(path).is_dir()
    torch.manual_seed(0)
    return Colours()


COLOURS = ScorerEntry(
    load_colours,
    differentiable=True,
    range=(-1, 1),
    licence="MIT",
    source="this test",
    build=lambda _: Colours(),
)


BRIGHTNESS = ScorerEntry(
    lambda _: Brightness(),
    differentiable=True,
    range=(0, 1),
    licence="MIT",
    source="this test",
    build=lambda _: Brightness(),
    reads_texts=False,
)


def blueness(images, prompt, context):
    """Return the mean of the blue channel, in [0, 1]."""
    del prompt, context
    return images[:, 2].mean((1, 2))


BLUENESS = Metric(blueness, (0, 1), "this test", "how blue the image is")


def tiny(**patch):
    return parse_settings(patched(read_values(ROOT / "profiles/tiny.yaml"), patch), "the test")


def with_metric(name="blueness", **patch):
    metrics = [*load_settings(ROOT / "profiles/tiny.yaml").evaluate.metrics, name]
    return tiny(evaluate={"metrics": metrics}, **patch)


def test_the_plan_uses_the_size_and_flops_of_a_new_reward(register, monkeypatch):
    monkeypatch.chdir(ROOT)
    rewards = [{"scorer": "colours", "path": "assets/tiny/family", "weight": 1}]
    with pytest.raises(ConfigError, match="unknown scorer 'colours'"):
        require_consistent(tiny(rewards=rewards))
    register(SCORERS, "colours", COLOURS)
    settings = tiny(rewards=rewards)
    require_consistent(settings)
    plan = make_plan(settings, Cluster(1, 16 * GB, None, 0.4, TERA, GB))
    assert plan.case.sizes.reward == 6 * 8 + 8
    assert 0 < plan.flops["reward"] < plan.flops["decoder"]
    of_tiny = make_plan(tiny(), Cluster(1, 16 * GB, None, 0.4, TERA, GB))
    both = make_plan(
        tiny(rewards=[*read_values(ROOT / "profiles/tiny.yaml")["rewards"], *rewards]), plan.cluster
    )
    assert both.case.sizes.reward == of_tiny.case.sizes.reward + plan.case.sizes.reward
    assert both.flops["reward"] == pytest.approx(of_tiny.flops["reward"] + plan.flops["reward"])


def relative_by_hand(worker, batch, calls):
    """Return (1+k)·r(wanted) − r(unwanted) of every sample in the order of the branches, from the scores of a step."""
    settings = worker.job.train
    align = settings.direct_align
    [midpoints] = draw_midpoints(batch.draws, settings)
    at = branches(midpoints, align.grid, align.ratio)
    k = torch.cat([discounts(align, name)[at[name].discount] for name in align.branches])
    [(images, texts)] = calls
    wanted = [f"{batch.wanted}. {prompt}" for prompt in batch.prompts]
    unwanted = [f"{batch.unwanted}. {prompt}" for prompt in batch.prompts]
    assert texts == [*wanted, *unwanted, *unwanted, *wanted], "the inversion branch exchanges the words"
    reward = load_colours(ROOT)
    positive, negative = (reward.score(images, some) for some in (texts[: len(k)], texts[len(k) :]))
    return ((1 + k) * positive - negative).chunk(2)


def test_a_step_with_a_reward_that_is_no_cosine_maximizes_its_relative_reward(register, job, monkeypatch):
    from srpo_core.training.worker import Worker

    register(SCORERS, "colours", COLOURS)
    rewards = [job.rewards[0].model_copy(update={"scorer": "colours"})]
    worker = Worker(replace(job, rewards=rewards), rank=0, world=1, device=torch.device("cpu"))
    calls, score = [], worker.learner.reward.score

    def recorded(images, texts):
        calls.append((images.detach(), texts))
        return score(images, texts)

    monkeypatch.setattr(worker.learner.reward, "score", recorded)
    metrics = worker.step(1)
    denoise, inversion = relative_by_hand(worker, worker.batch(1), calls)
    assert metrics["reward_denoise"] == pytest.approx(float(denoise.mean()), rel=1e-5)
    assert metrics["reward_inversion"] == pytest.approx(float(inversion.mean()), rel=1e-5)


def test_a_mix_with_an_image_only_reward_trains_and_logs_each_reward(register, job):
    from srpo_core.training.worker import Worker

    register(SCORERS, "brightness", BRIGHTNESS)
    first = job.rewards[0].model_copy(update={"weight": 0.5})
    rewards = [first, first.model_copy(update={"scorer": "brightness", "weight": 2.0})]
    alone = Worker(job, rank=0, world=1, device=torch.device("cpu")).step(1)
    metrics = Worker(replace(job, rewards=rewards), rank=0, world=1, device=torch.device("cpu")).step(1)
    for branch in ("denoise", "inversion"):
        total, each = metrics[f"reward_{branch}"], [metrics[f"reward_{branch}_{name}"] for name in MIXED]
        assert total == pytest.approx(0.5 * each[0] + 2 * each[1], rel=1e-5)
        assert each[0] == alone[f"reward_{branch}"], "the same images, scored by the same reward"
    assert metrics["grad_norm"] != alone["grad_norm"]


def test_an_image_only_reward_is_asked_only_about_images(register, family):
    register(SCORERS, "brightness", BRIGHTNESS)
    light, dark = torch.full((1, 3, 8, 8), 0.9), torch.full((1, 3, 8, 8), 0.8)
    examples = [Example("owl", light, dark), Example("crab", light, dark)]
    settings = ScorerSettings(scorer="brightness", path=str(family))
    require_known_answers({"reward": settings}, examples, torch.device("cpu"))
    with pytest.raises(GateError, match="better than the image of another prompt"):
        require_answers("reward", Brightness(), examples, torch.device("cpu"))


def test_a_reward_without_towers_marks_no_image_as_broken_which_is_logged(register, job, family, caplog):
    """Its vectors are 0, so it does not tell the base's images apart; the judge and the statistics still do."""
    register(SCORERS, "brightness", BRIGHTNESS)
    rewards = [RewardSettings(scorer="brightness", path=str(family), weight=1)]
    context = MetricContext(rewards, job.select_judge, job.control_words)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scored, _ = evidence(images, "rocket", context)
    assert scored[0].images.tolist() == scored[0].texts.tolist() == [[0.0], [0.0]]
    assert scored[1].images.shape[1] > 1
    own = Evidence(torch.tensor([0, 1]), [scored[0]], torch.zeros(2, 7))
    assert not faults(own, own).any()
    check_metrics(["broken"], context, ["rocket"], 1, beside_base=True)
    assert "reward: the scorer brightness has no towers" in caplog.text
    caplog.clear()
    known = MetricContext(job.rewards, job.select_judge, job.control_words)
    check_metrics(["broken"], known, ["rocket"], 1, beside_base=True)
    assert "towers" not in caplog.text


def test_the_vectors_of_a_mix_give_its_score(register, job, family):
    register(SCORERS, "brightness", BRIGHTNESS)
    first = job.rewards[0].model_copy(update={"path": str(family / "reward"), "weight": 0.5})
    rewards = [first, first.model_copy(update={"weight": 3.0})]
    context = MetricContext(rewards, job.select_judge, job.control_words)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scored = evidence(images, "rocket", context)[0][0]
    found = (scored.images * scored.texts).sum(1)
    assert found.tolist() == pytest.approx(context.reward.score(images, ["rocket"] * 2).tolist(), abs=1e-6)


def test_a_model_can_be_trained_with_a_new_reward(register, job):
    from srpo_core.training.worker import Worker

    register(SCORERS, "colours", COLOURS)
    rewards = [job.rewards[0].model_copy(update={"scorer": "colours"})]
    worker = Worker(replace(job, rewards=rewards), rank=0, world=1, device=torch.device("cpu"))
    before = [parameter.clone() for parameter in worker.model.transformer.parameters()]
    metrics = worker.step(1)
    assert isinstance(worker.learner.reward, Colours)
    assert metrics["grad_norm"] > 0
    after = worker.model.transformer.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_new_reward_works_as_an_additional_scorer_and_has_notes(register, family):
    register(SCORERS, "colours", COLOURS)
    settings = tiny(evaluate={"scorers": {"taste": {"scorer": "colours", "path": str(family / "reward")}}})
    require_consistent(settings)
    context = MetricContext(
        settings.rewards, settings.judge, settings.control_words, dict(settings.evaluate.scorers)
    )
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = measure(["taste", "taste_sgp"], images, "a cat", context)
    assert found["taste"].shape == found["taste_sgp"].shape == (2,)
    assert found["taste"].abs().max() <= 1
    assert metric_notes(settings.evaluate.scorers)["taste"].endswith("by the further scorer taste (colours)")


def test_a_new_metric_is_accepted_in_the_settings_measured_and_explained(register, family):
    with pytest.raises(ConfigError, match=r"^evaluate\.metrics: unknown metric 'blueness'"):
        require_consistent(with_metric())
    register(METRICS, "blueness", BLUENESS)
    settings = with_metric(select={"maximize": "blueness"}, quantize={"gain": "blueness"})
    require_consistent(settings)
    context = MetricContext(settings.rewards, settings.judge, settings.control_words)
    check_metrics(["blueness"], context, ["a cat"], num_seeds=1)
    images = torch.stack([torch.full((3, 4, 4), value) for value in (0.25, 0.75)])
    measured = finish("blueness", measure(["blueness"], images, "a cat", context)["blueness"], context)
    assert measured.tolist() == [0.25, 0.75]
    assert metric_notes({})["blueness"] == "how blue the image is"


@pytest.mark.parametrize(
    ("needs", "patch", "line"),
    [
        (
            {"needs_seeds": True},
            {"evaluate": {"seeds_per_prompt": 1}},
            r"^evaluate\.seeds_per_prompt is 1, but 'blueness' compares the images of a prompt",
        ),
        (
            {"needs_seeds": True},
            {"quantize": {"gain": "blueness"}},
            r"^quantize\.gain is 'blueness', which is not defined for a single image of a prompt",
        ),
        (
            {"needs_real_images": True},
            {"select": {"maximize": "blueness"}},
            r"^select asks for 'blueness', which compares with real images",
        ),
        (
            {"beside_base": lambda compared, context: compared.own},
            {"select": {"maximize": "blueness"}},
            r"^select asks for 'blueness', which compares with the base's images",
        ),
        (
            {"beside_base": lambda compared, context: compared.own},
            {"quantize": {"gain": "blueness"}},
            r"^quantize\.gain is 'blueness', which is not defined for a single image of a prompt",
        ),
        (
            {"judge": "texts"},
            {},
            r"^evaluate\.metrics, judge: metric 'blueness' needs a judge that scores images against texts",
        ),
        (
            {"over_all": lambda found, context: found},
            {"quantize": {"gain": "blueness"}},
            r"^quantize\.gain is 'blueness', which is not defined for a single image of a prompt",
        ),
    ],
)
def test_the_requirements_of_a_new_metric_are_checked_from_its_entry(register, needs, patch, line):
    register(METRICS, "blueness", replace(BLUENESS, **needs))
    metrics = load_settings(ROOT / "profiles/tiny.yaml").evaluate.metrics
    evaluate = {"metrics": ["blueness", *metrics], **patch.get("evaluate", {})}
    with pytest.raises(ConfigError, match=line):
        require_consistent(tiny(**{**patch, "evaluate": evaluate}))
