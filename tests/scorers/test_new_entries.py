"""Add a new reward and a new metric by one entry each, and check that all parts of the project support them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from srpo_core.config import load_settings, parse_settings, patched, read_values
from srpo_core.errors import ConfigError
from srpo_core.plan import GB, TERA, Cluster, make_plan
from srpo_core.preflight.consistency import require_consistent
from srpo_core.scorers import SCORERS, ScorerEntry
from srpo_core.scorers.metrics import (
    METRICS,
    Metric,
    MetricContext,
    check_metrics,
    finish,
    measure,
    metric_notes,
)

ROOT = Path(__file__).resolve().parents[2]


class Colours(torch.nn.Module):
    """A reward of one linear layer on the mean colour; a text's feature is its length."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 4, bias=False).requires_grad_(requires_grad=False)

    def encode_images(self, images):
        return torch.nn.functional.normalize(self.layer(images.mean((2, 3))), dim=-1)

    def encode_texts(self, texts):
        lengths = torch.tensor([[float(len(text)), 1.0, -1.0, 2.0] for text in texts])
        return torch.nn.functional.normalize(lengths, dim=-1)


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
    rewards = [{"scorer": "colours", "path": "assets/tiny/family/reward", "weight": 1}]
    with pytest.raises(ConfigError, match="unknown scorer 'colours'"):
        require_consistent(tiny(rewards=rewards))
    register(SCORERS, "colours", COLOURS)
    settings = tiny(rewards=rewards)
    require_consistent(settings)
    plan = make_plan(settings, Cluster(1, 16 * GB, None, 0.4, TERA, GB))
    assert plan.sizes.reward == 4 * 12
    assert 0 < plan.flops["reward"] < plan.flops["decoder"]


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
