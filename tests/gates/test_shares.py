"""Figures without resampling, against published values and against the definition of an exact interval."""

import numpy as np
import pytest
from scipy.stats import binom

from srpo_core.errors import ConfigError
from srpo_core.gates.comparisons import COMPARISONS, require_valid_rules
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.rules import measure_rules
from srpo_core.gates.shares import upper_end


def measured(make, compare, figures, **changes):
    rule = make.rule(
        metric="broken", against="absolute", compare=compare, side="at_most", margin=0.05, **changes
    )
    pairs = pair_up(make.table(broken=(np.zeros_like(figures), figures)), "figures.parquet")
    return measure_rules({"few": rule}, pairs, seed=0, gate=make.gate(few=rule))["few"]


@pytest.mark.parametrize(
    ("count", "total", "upper"),
    [(0, 120, 0.0247), (1, 120, 0.0389), (2, 120, 0.0515), (4, 120, 0.0747), (0, 40, 0.0722), (40, 40, 1.0)],
)
def test_the_upper_end_of_a_share_is_that_of_clopper_and_pearson(count, total, upper):
    assert upper_end(count, total, 0.95) == pytest.approx(upper, abs=5e-5)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_the_upper_end_is_below_the_true_share_in_at_most_five_percent_of_all_samples(share):
    counts = np.arange(121)
    below = [count for count in counts if upper_end(int(count), 120, 0.95) < share]
    assert binom.pmf(below, 120, share).sum() <= 0.05


def test_a_share_counts_images_and_its_interval_starts_at_zero(make):
    figures = np.zeros((12, 2))
    figures[3, 0] = figures[7, 1] = 1
    found = measured(make, "share", figures)
    assert (found.value, found.low) == (2 / 24, 0)
    assert found.high == pytest.approx(upper_end(2, 24, 0.95))


def test_a_share_of_prompts_counts_a_prompt_from_half_of_its_images(make):
    figures = np.zeros((12, 2))
    figures[3] = 1
    figures[7, 1] = 1
    found = measured(make, "share_of_prompts", figures)
    assert found.value == 2 / 12
    assert found.high == pytest.approx(upper_end(2, 12, 0.95))


def test_a_figure_of_all_images_together_has_no_interval(make):
    found = measured(make, "whole", np.full((12, 2), 0.3))
    assert (found.value, found.low, found.high, found.fault) == (0.3, 0.3, 0.3, "")


def test_a_figure_that_is_not_finite_is_a_fault_of_a_share(make):
    figures = np.zeros((12, 2))
    figures[3, 0] = np.nan
    assert "not a finite number in 1 image pairs" in measured(make, "share", figures).fault


def test_a_factor_is_the_ratio_of_geometric_means(make):
    rule = make.rule(metric="level", compare="factor", side="at_least", margin=0.5)
    base, ours = np.log([[1.0, 4.0]] * 12), np.log([[2.0, 32.0]] * 12)
    pairs = pair_up(make.table(level=(base, ours)), "figures.parquet")
    found = measure_rules({"kept": rule}, pairs, seed=0, gate=make.gate(kept=rule))["kept"]
    assert found.value == pytest.approx(4)


@pytest.mark.parametrize("compare", [name for name, entry in COMPARISONS.items() if entry.direct])
@pytest.mark.parametrize("changes", [{"side": "at_least"}, {"severity": "veto"}, {"severity": "hacking"}])
def test_a_comparison_with_only_an_upper_end_is_refused_where_it_could_decide_nothing(make, compare, changes):
    values = {"against": "absolute", "compare": compare, "side": "at_most"} | changes
    with pytest.raises(ConfigError, match=r"^gate\.rules\.few: compare .* set side to at_most"):
        require_valid_rules({"few": make.rule(**values)})
