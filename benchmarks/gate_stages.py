"""Simulate the gate with evaluation in stages beside the gate that sees all prompts at once: error rates and savings.

python benchmarks/gate_stages.py [FIGURES ...]        figures.parquet of evaluations of honest models

Default: the five seeds of the demo in tests/gates/data. Each simulated evaluation draws `--prompts` prompts of one of them
within the styles and evaluates them once at once and once in `--stages`. Prints JSON lines:

- `equal`: base and aligned change places in half of the prompts. Counted are the rules for which equality is enough.
- `on the margin`: a model exactly on the margin of one rule, which alone decides; at most 2.5 % may pass.
- the others: honest models, and models with a defect of known size; `stage`: how often each stage decides; `prompts`: the
  mean share of the prompts that are evaluated.

Figures that describe all images together stay those of the run.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from defects import DEFECTS
from gate import (
    HONEST,
    ROOT,
    allows_equality,
    broken_rules,
    exchanged,
    measured_rules,
    read_runs,
    refuses,
)
from numpy.random import Generator

from srpo_core.config import GateRule, GateSettings, load_settings
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.rules import Measurement, measure_rules
from srpo_core.gates.spending import Stage, stage_sizes
from srpo_core.gates.staged import holds, outcome
from srpo_core.prompts import balanced_order

SELECTION: Final = {"admissible": [1]}
MARGIN_RULES: Final = ("style_gained", "subject_kept", "diversity_kept", "detail_kept")
SPOILT: Final = (
    ("broken images", 0.1),
    ("images without their subject", 0.2),
    ("diversity lost", 0.7),
    ("gain missing", 1.0),
)
Make = Callable[[Pairs, int, Generator], Pairs]


def main() -> None:
    """Print the rates of both gates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", nargs="*", type=Path, default=[HONEST])
    parser.add_argument("--settings", type=Path, default=ROOT / "profiles/tiny.yaml")
    parser.add_argument("--prompts", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--stages", type=float, nargs="+", default=[0.5, 0.75, 1.0])
    parser.add_argument(
        "--resamples", type=int, default=4000, help="the presets have 10,000, which takes longer"
    )
    parser.add_argument("--sets", type=int, default=200, help="simulated evaluations for each line")
    options = parser.parse_args()
    runs = [pairs for path in options.figures for pairs in read_runs(path)]
    gate, _ = measured_rules(load_settings(options.settings).gate, runs[0])
    gate = gate.model_copy(update={"resamples": options.resamples})
    for prompts in options.prompts:
        sizes = stage_sizes(prompts, options.stages)
        for line in lines(runs, gate, sizes, options.sets):
            print(json.dumps({"prompts": prompts, **line}), flush=True)


def lines(
    runs: Sequence[Pairs], gate: GateSettings, sizes: tuple[int, ...], sets: int
) -> Iterator[dict[str, Any]]:
    """Yield the rates for equal models, models on a margin, honest models and models with a defect."""
    allowed = {name: rule for name, rule in gate.rules.items() if allows_equality(rule)}
    equal = gate.model_copy(update={"rules": allowed})
    size = sizes[-1]
    yield whole_gate(
        "equal", runs, equal, sizes, sets, lambda run, seed, draw: exchanged(drawn(run, size, draw), draw)
    )
    for name in MARGIN_RULES:
        yield on_the_margin(name, runs, gate, sizes, sets)
    yield whole_gate("honest", runs, gate, sizes, sets, lambda run, seed, draw: drawn(run, size, draw))
    for defect, share in SPOILT:

        def spoilt(
            run: Pairs, seed: int, draw: Generator, defect: str = defect, share: float = share
        ) -> Pairs:
            pairs = drawn(run, size, draw)
            changed = DEFECTS[defect](pairs, gate, share, draw)
            assert changed is not None, "the tables have all metrics"
            return replace(pairs, aligned={**pairs.aligned, **changed})

        yield whole_gate(f"{defect} {share:g}", runs, gate, sizes, sets, spoilt)


def whole_gate(
    name: str, runs: Sequence[Pairs], gate: GateSettings, sizes: tuple[int, ...], sets: int, make: Make
) -> dict[str, Any]:
    """Simulate both gates on the same evaluations."""
    draw, at_once, staged, by_stage = np.random.default_rng(0), 0, 0, Counter[int]()
    for number in range(sets):
        pairs = make(runs[number % len(runs)], number, draw)
        at_once += bool(broken_rules(gate, pairs, number))
        passed, stage = decided(pairs, gate, sizes, number)
        staged += not passed
        by_stage[stage] += 1
    return {
        "model": name,
        "sets": sets,
        "refused_at_once": round(at_once / sets, 4),
        "refused_in_stages": round(staged / sets, 4),
        "stage": [round(by_stage[number] / sets, 3) for number in range(len(sizes))],
        "share_of_prompts": round(
            sum(sizes[stage] * count for stage, count in by_stage.items()) / sizes[-1] / sets, 3
        ),
    }


def decided(pairs: Pairs, gate: GateSettings, sizes: tuple[int, ...], seed: int) -> tuple[bool, int]:
    """Return whether the model passes in stages, and the number of the stage that decides."""
    order = balanced_order(pairs.prompts, pairs.styles, seed)
    last = len(sizes) - 1
    for number, size in enumerate(sizes[:-1]):
        found = outcome(
            first(pairs, order[:size]), SELECTION, seed=seed, gate=gate, stage=Stage(number, sizes)
        )
        if found != "undecided":
            return found == "passes", number
    measured = measure_rules(gate.rules, pairs, seed=seed, gate=gate, stage=Stage(last, sizes))
    return not any(refuses(gate.rules[name], one) for name, one in measured.items()), last


def on_the_margin(
    name: str, runs: Sequence[Pairs], gate: GateSettings, sizes: tuple[int, ...], sets: int
) -> dict[str, Any]:
    """Simulate models whose figure is exactly the margin of a rule, which alone decides; both gates see the same."""
    rule = gate.rules[name]
    own = gate.model_copy(update={"rules": {name: rule}})
    draw, at_once, staged = np.random.default_rng(0), 0, 0
    for number in range(sets):
        run = at_margin(runs[number % len(runs)], rule)
        pairs = drawn(run, sizes[-1], draw)
        order = balanced_order(pairs.prompts, pairs.styles, number)
        at_once += holds(rule, _measured(own, name, pairs, number, None))
        staged += any(
            holds(rule, _measured(own, name, first(pairs, order[:size]), number, Stage(stage, sizes)))
            for stage, size in enumerate(sizes)
        )
    return {
        "model": f"on the margin of {name}",
        "sets": sets,
        "passed_at_once": round(at_once / sets, 4),
        "passed_in_stages": round(staged / sets, 4),
    }


def _measured(gate: GateSettings, name: str, pairs: Pairs, seed: int, stage: Stage | None) -> Measurement:
    return measure_rules(gate.rules, pairs, seed=seed, gate=gate, stage=stage)[name]


def at_margin(run: Pairs, rule: GateRule) -> Pairs:
    """Return the run with the rule's figure moved to the margin: means are shifted, ratios and factors scaled.

    A metric of 0 and 1 loses single images instead, as many as the margin says, as evenly over the prompts as can be.
    """
    base, aligned = run.base[rule.metric], run.aligned[rule.metric]
    if rule.compare == "ratio":
        moved = aligned * (rule.margin * base.mean() / aligned.mean())
    elif rule.compare == "factor":
        moved = aligned + (np.log(rule.margin) - (aligned.mean() - base.mean()))
    elif set(np.unique(base)) <= {0.0, 1.0}:
        moved = base.copy()
        lost = round(-rule.margin * len(base))
        moved[np.flatnonzero(base == 1)[np.linspace(0, (base == 1).sum() - 1, lost).round().astype(int)]] = (
            0.0
        )
    else:
        moved = aligned + (rule.margin - (aligned.mean() - base.mean()))
    return replace(run, aligned={**run.aligned, rule.metric: moved})


def drawn(pairs: Pairs, count: int, draw: Generator) -> Pairs:
    """Draw `count` prompts with replacement, of each style as many as its share; a prompt keeps its images."""
    styles = np.array(pairs.styles)
    names = np.unique(styles)
    chosen = np.concatenate(
        [
            draw.choice(np.flatnonzero(styles == style), len(own))
            for style, own in zip(names, np.array_split(np.arange(count), len(names)), strict=True)
        ]
    )
    picked = first(pairs, chosen.tolist())
    return replace(
        picked, prompts=tuple(f"{number}: {prompt}" for number, prompt in enumerate(picked.prompts))
    )


def first(pairs: Pairs, order: Sequence[int]) -> Pairs:
    """Return the pairs of some prompts, given by their indices."""
    places = [np.flatnonzero(pairs.prompt_index == prompt) for prompt in order]
    rows = np.concatenate(places)
    return Pairs(
        prompts=tuple(pairs.prompts[prompt] for prompt in order),
        styles=tuple(pairs.styles[prompt] for prompt in order),
        prompt_index=np.repeat(np.arange(len(order)), [len(own) for own in places]),
        seeds=pairs.seeds[rows],
        base={name: own[rows] for name, own in pairs.base.items()},
        aligned={name: own[rows] for name, own in pairs.aligned.items()},
        champion=None,
    )


if __name__ == "__main__":
    main()
