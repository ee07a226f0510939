"""Simulate how often the whole gate refuses: a model equal to the base, and models with a defect of known size.

python benchmarks/gate.py [FIGURES ...]        figures.parquet of evaluations of honest models

Default: the five seeds of the demo in tests/gates/data. Each simulated evaluation resamples the prompts of one of them
within the styles; the rules of `--settings` decide. Rules whose metric the tables lack are named. Prints JSON lines.

- `equal`: within each prompt, base and aligned change places with probability one half. The two models are then equal
  in distribution and differ as much as an honest model differs from its base. Counted are the rules for which equality
  is enough.
- `on the margin`: a model that lost exactly the margin of a rule on subjects (40 prompts, 3 seeds, a base that never
  fails). At a confidence of 95 % at most 2.5 % of such models may pass.
- the others: an honest model of which a share is spoilt, and how often the whole gate refuses it. `--plot FILE.svg`
  draws them. Figures that describe all images together stay those of the run.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from curves import drawn
from defects import DEFECTS, Figures, Lost, Spoil, lost_images, lost_prompts
from numpy.random import Generator

from srpo_core.artifacts import CHAMPION
from srpo_core.config import GateRule, GateSettings, load_settings
from srpo_core.gates.bootstrap import Sample, percentile_interval
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.pairs import Floats, Pairs, pair_up
from srpo_core.gates.rules import BY_PROOF_OF_BREACH, Measurement, asks_for_gain, limits, measure_rules

ROOT: Final = Path(__file__).parents[1]
HONEST: Final = ROOT / "tests/gates/data/honest_figures.parquet"
SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
HALF: Final = 0.5
MARGINS: Final = (0.10, 0.15)


def main() -> None:
    """Print the rate for an equal model and the curves, and draw the curves if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", type=Path, default=[HONEST])
    parser.add_argument("--settings", type=Path, default=ROOT / "profiles/tiny.yaml")
    parser.add_argument(
        "--equal-sets", type=int, default=1000, help="simulated evaluations of an equal model"
    )
    parser.add_argument("--sets", type=int, default=100, help="simulated evaluations per point of a curve")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    gate = load_settings(options.settings).gate.model_copy(update={"resamples": 2000})
    runs = [pairs for path in options.figures for pairs in read_runs(path)]
    gate, left_out = measured_rules(gate, runs[0])
    print(json.dumps({"runs": len(runs), "rules": len(gate.rules), "not_measured": left_out}))
    print(json.dumps(equal_model(runs, gate, options.equal_sets)), flush=True)
    for margin in MARGINS:
        for lost in (lost_prompts, lost_images):
            print(json.dumps(on_the_margin(margin, lost, gate, options.equal_sets)), flush=True)
    lines = []
    for line in curves(runs, gate, options.sets):
        print(json.dumps(line), flush=True)
        lines.append(line)
    if options.plot:
        options.plot.write_text(drawn(lines, SHARES), encoding="utf-8")


def read_runs(path: Path) -> Iterator[Pairs]:
    """Yield the pairs of each run in a table of figures; a column `run` tells several apart."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if "run" not in table.column_names:
        yield pair_up(table, path)
        return
    for run in pc.unique(table["run"]).to_pylist():
        yield pair_up(table.filter(pc.equal(table["run"], run)), path)


def measured_rules(gate: GateSettings, pairs: Pairs) -> tuple[GateSettings, list[str]]:
    """Return the gate with the rules that the tables can decide without a champion, and the names of the others."""
    kept = {
        name: rule
        for name, rule in gate.rules.items()
        if rule.metric in pairs.aligned and rule.against != CHAMPION
    }
    left_out = [name for name, rule in gate.rules.items() if name not in kept and rule.against != CHAMPION]
    return gate.model_copy(update={"rules": kept}), left_out


def equal_model(runs: Sequence[Pairs], gate: GateSettings, sets: int) -> dict[str, Any]:
    """Simulate evaluations of a model equal to the base by the rules for which equality is enough."""
    from scipy.stats import binomtest

    rules = {name: rule for name, rule in gate.rules.items() if allows_equality(rule)}
    own = gate.model_copy(update={"rules": rules})
    draw = np.random.default_rng(0)
    by_rule = dict.fromkeys(rules, 0)
    refused = 0
    for number in range(sets):
        pairs = exchanged(resampled(runs[number % len(runs)], draw), draw)
        broken = broken_rules(own, pairs, number)
        refused += bool(broken)
        for name in broken:
            by_rule[name] += 1
    ends = binomtest(refused, sets).proportion_ci(0.95, method="exact")
    return {
        "curve": "equal",
        "sets": sets,
        "rules": len(rules),
        "refused": refused / sets,
        "low": round(ends.low, 4),
        "high": round(ends.high, 4),
        "by_rule": {name: count / sets for name, count in by_rule.items() if count},
    }


def on_the_margin(margin: float, lost: Lost, gate: GateSettings, sets: int) -> dict[str, Any]:
    """Simulate models that lost exactly `margin` of the subjects, with and without the exact ends of the interval."""
    rule = GateRule(
        metric="subject",
        against="base",
        compare="difference",
        side="at_least",
        margin=-margin,
        severity="refuse",
        meaning="the subject is kept",
    )
    prompts, seeds = 40, 3
    kept = np.ones(prompts * seeds)
    base = Pairs(
        prompts=tuple(map(str, range(prompts))),
        styles=("",) * prompts,
        prompt_index=np.repeat(np.arange(prompts), seeds),
        seeds=np.tile(np.arange(seeds), prompts),
        base={"subject": kept},
        aligned={"subject": kept},
        champion=None,
    )
    draw, passed, by_bootstrap = np.random.default_rng(2), 0, 0
    for number in range(sets):
        aligned = {"subject": np.where(lost(base, margin, draw), 0.0, kept)}
        one = measure_rules({"kept": rule}, replace(base, aligned=aligned), seed=number, gate=gate)["kept"]
        low, _ = percentile_interval(one.draws, Sample(prompts, 1), confidence=gate.confidence)
        passed += one.low >= -margin
        by_bootstrap += low >= -margin
    return {
        "curve": "on the margin",
        "margin": -margin,
        "lost": "whole prompts" if lost is lost_prompts else "single images",
        "sets": sets,
        "passed": passed / sets,
        "passed_by_the_bootstrap_alone": by_bootstrap / sets,
    }


def curves(runs: Sequence[Pairs], gate: GateSettings, sets: int) -> Iterator[dict[str, Any]]:
    """Yield the share of refused evaluations for each defect and each true share of it.

    `refused_by` counts the rules that refuse honest models: the first point of each curve.
    """
    for name, spoil in DEFECTS.items():
        points, honest = [], Counter[str]()
        for share in SHARES:
            draw = np.random.default_rng(1)
            found = [spoilt(runs[number % len(runs)], gate, spoil, share, draw) for number in range(sets)]
            broken = [broken_rules(gate, pairs, number) for number, pairs in enumerate(found) if pairs]
            if len(broken) < sets:
                break
            points.append((share, round(float(np.mean([bool(rules) for rules in broken])), 4)))
            if share == 0:
                honest = Counter(rule for rules in broken for rule in rules)
        else:
            yield {"curve": name, "sets": sets, "points": points, "refused_by": dict(honest)}


def spoilt(run: Pairs, gate: GateSettings, spoil: Spoil, share: float, draw: Generator) -> Pairs | None:
    """Return a resampled evaluation with a defect; None if the tables do not have the figures that it changes."""
    pairs = resampled(run, draw)
    changed = spoil(pairs, gate, share, draw)
    return None if changed is None else replace(pairs, aligned={**pairs.aligned, **changed})


def resampled(pairs: Pairs, draw: Generator) -> Pairs:
    """Draw as many prompts of each style as there are, with replacement; a prompt keeps its images."""
    styles = np.array(pairs.styles)
    chosen = np.concatenate(
        [draw.choice(np.flatnonzero(styles == style), np.sum(styles == style)) for style in np.unique(styles)]
    )
    places = [np.flatnonzero(pairs.prompt_index == prompt) for prompt in chosen]
    rows = np.concatenate(places)

    def pick(figures: Mapping[str, Floats]) -> Figures:
        return {name: own[rows] for name, own in figures.items()}

    return Pairs(
        prompts=tuple(f"{number}: {pairs.prompts[prompt]}" for number, prompt in enumerate(chosen)),
        styles=tuple(styles[chosen]),
        prompt_index=np.repeat(np.arange(len(chosen)), [len(own) for own in places]),
        seeds=pairs.seeds[rows],
        base=pick(pairs.base),
        aligned=pick(pairs.aligned),
        champion=None,
    )


def exchanged(pairs: Pairs, draw: Generator) -> Pairs:
    """Exchange base and aligned in half of the prompts, all metrics together."""
    swap = (draw.random(len(pairs.prompts)) < HALF)[pairs.prompt_index]
    both = {name: (pairs.base[name], pairs.aligned[name]) for name in pairs.metrics}
    return replace(
        pairs,
        base={name: np.where(swap, ours, theirs) for name, (theirs, ours) in both.items()},
        aligned={name: np.where(swap, theirs, ours) for name, (theirs, ours) in both.items()},
    )


def allows_equality(rule: GateRule) -> bool:
    """Whether a model equal to the base should hold the rule."""
    if asks_for_gain(rule):
        return False
    neutral = COMPARISONS[rule.compare].neutral
    least, greatest = limits(rule)
    if np.isnan(neutral):
        return True
    return (least is None or least <= neutral) and (greatest is None or neutral <= greatest)


def broken_rules(gate: GateSettings, pairs: Pairs, seed: int) -> list[str]:
    """Return the rules that refuse the model, by plain comparison: the suite of Great Expectations takes seconds."""
    found = measure_rules(gate.rules, pairs, seed=seed, gate=gate)
    return [name for name, one in found.items() if refuses(gate.rules[name], one)]


def refuses(rule: GateRule, one: Measurement) -> bool:
    """Whether a rule refuses the model; rules of severity hacking count as armed."""
    if rule.severity == "warn":
        return False
    if one.fault:
        return True
    least, greatest = limits(rule)
    near, far = (one.high, one.low) if rule.severity in BY_PROOF_OF_BREACH else (one.low, one.high)
    return (least is not None and near < least) or (greatest is not None and far > greatest)


if __name__ == "__main__":
    main()
