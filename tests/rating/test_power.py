"""Plans: their figures by hand, and simulations in which a plan keeps its promise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from simulated_people import People, of_table

from srpo_core.errors import ConfigError
from srpo_core.rating.clustered import rate_interval
from srpo_core.rating.power import (
    Assumptions,
    chance_of_check,
    expected_power,
    most_failing,
    num_checks,
    plan_items,
)


def shares_of_variance(people: People, generator: np.random.Generator) -> Assumptions:
    """Return ties and shares of the variance between raters and between prompts of simulated answers."""
    raters = np.stack([people.values(1, 400, generator)[0] for _ in range(400)]).mean(1).var()
    prompts = np.stack([people.values(400, 1, generator)[:, 0] for _ in range(400)]).mean(1).var()
    values = people.values(400, 400, generator)
    return Assumptions(
        ties=float((values == 0.5).mean()),
        between_raters=float(raters / values.var()),
        between_prompts=float(prompts / values.var()),
    )


@pytest.mark.parametrize("people", [People(gain=0.9), People(gain=0.5, raters=0.15)], ids=str)
def test_a_planned_task_shows_the_effect_with_the_planned_power(people):
    """300 tasks: their share is within chance of the planned power, so the plan neither promises too much nor wastes prompts."""
    generator = np.random.default_rng(7)
    assumed = shares_of_variance(people, generator)
    plan = plan_items("paired", people.win_rate - 0.5, power=0.8, raters=6, assumed=assumed)
    shown = 0
    for _ in range(300):
        low, _ = rate_interval(of_table(people.values(plan.raters, plan.prompts, generator)), 0.95)
        shown += low > 0.5
    assert 0.74 <= shown / 300 <= 0.9


def test_a_plan_has_the_least_number_of_prompts_that_has_the_power():
    plan = plan_items("paired", 0.15, raters=5)
    assumed = Assumptions()
    assert plan.expected_power >= 0.8
    assert expected_power("paired", 0.15, 5, plan.prompts - 1, 0.95, assumed) < 0.8
    assert plan.expected_power == round(expected_power("paired", 0.15, 5, plan.prompts, 0.95, assumed), 4)
    assert plan.items == plan.prompts + plan.repeats + plan.checks == plan.answers


def test_without_differences_between_raters_and_prompts_the_plan_is_that_of_independent_answers():
    """Binomial: v = .55·.45, P·R = v (1.96 + .84)² / .05² = 777 answers without ties; not knowing v costs up to a third more."""
    plain = Assumptions(ties=0.0, between_raters=0.0, between_prompts=0.0)
    plan = plan_items("paired", 0.05, raters=20, assumed=plain)
    assert 777 <= plan.raters * plan.prompts <= 1050
    assert plan.design_effect == 1.0
    tied = plan_items("paired", 0.05, raters=20, assumed=replace(plain, ties=0.5))
    assert tied.raters * tied.prompts < plan.raters * plan.prompts  # ties count half and vary less


def test_levels_have_two_images_of_each_prompt_and_four_answers_each():
    plan = plan_items("levels", 0.3, raters=8)
    assert plan.plain_items == 2 * plan.prompts
    assert plan.answers == 4 * (plan.plain_items + plan.repeats + plan.checks)


def test_too_few_raters_are_refused_with_a_number_that_is_enough():
    with pytest.raises(ConfigError, match=r"3 raters cannot show .*: take 5 raters or more") as refusal:
        plan_items("paired", 0.15, raters=3)
    assert "\n" not in str(refusal.value)
    assert plan_items("paired", 0.15, raters=5).prompts > 0
    with pytest.raises(ConfigError, match="take 5 raters"):
        plan_items("paired", 0.15, raters=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"effect": 0.0},
        {"effect": 0.5},
        {"effect": float("nan")},
        {"power": 1.0},
        {"power": 0.2},
        {"raters": 1},
        {"confidence": 0.1},
    ],
    ids=str,
)
def test_a_plan_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError):
        plan_items("paired", **({"effect": 0.2, "raters": 5} | wrong))


@pytest.mark.parametrize("protocol", ["paired", "levels"])
def test_the_number_of_checks_finds_lazy_raters_and_spares_careful_ones(protocol):
    number = num_checks(protocol)
    failing = most_failing(number)
    assert binom.cdf(failing, number, chance_of_check(protocol)) >= 0.9
    assert binom.cdf(failing, number, 0.9) < 0.05
    fewer = most_failing(number - 1)
    assert fewer < 0 or binom.cdf(fewer, number - 1, chance_of_check(protocol)) < 0.9
