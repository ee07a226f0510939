"""Time the gate on the full benchmark: 3,200 prompts, 4 seeds, 12 metrics, 10,000 resamples.

Times the whole decision (pairing the table of figures, intervals, the suite of Great Expectations, the probability of
refusing an equal model, the sentences), the pairing and the intervals alone, and the import of Great Expectations.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from srpo_core.artifacts import ALIGNED, BASE
from srpo_core.config import GateRule, GateSettings
from srpo_core.gates.decision import decide
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.rules import measure_rules

STYLES = ("anime", "concept-art", "paintings", "photo")
SELECTION = {"admissible": [0], "reason": "of the benchmark"}
SOURCE = Path("figures.parquet")


def main() -> None:
    """Print a JSON line with CPU and wall seconds for each part."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("prompts", 3200), ("seeds", 4), ("metrics", 12), ("resamples", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    size = parser.parse_args()
    for line in timed(size.prompts, size.seeds, size.metrics, size.resamples):
        print(json.dumps(vars(size) | line))


def timed(prompts: int, seeds: int, metrics: int, resamples: int) -> list[dict[str, Any]]:
    """Return the times of the import, the whole decision on random figures of two models, and its parts."""
    names = [f"metric_{number}" for number in range(metrics)]
    table = figures(prompts, seeds, names)
    rules = {
        f"{name} {compare}": _rule(name, compare) for name in names for compare in ("difference", "win_rate")
    }
    gate = GateSettings(confidence=0.95, resamples=resamples, objective=names[0], rules=rules)
    _, imported = _seconds(lambda: import_module("great_expectations"))
    decision, whole = _seconds(lambda: decide(pair_up(table, SOURCE), SELECTION, seed=0, gate=gate))
    pairs, paired = _seconds(lambda: pair_up(table, SOURCE))
    measured, alone = _seconds(lambda: measure_rules(rules, pairs, seed=0, gate=gate))
    return [
        {"timed": "import", **imported},
        {"timed": "decision", "verdict": decision["verdict"], "rules": len(decision["rules"]), **whole},
        {"timed": "pairing", "pairs": len(pairs.seeds), **paired},
        {"timed": "intervals", "intervals": len(measured), **alone},
    ]


def figures(prompts: int, seeds: int, names: Sequence[str]) -> Any:
    """Return a `pyarrow.Table` like that of stage evaluate, in which the aligned model gains 0.01 in every metric."""
    import pyarrow as pa

    generator = np.random.default_rng(0)
    number, seed = (grid.ravel() for grid in np.indices((prompts, seeds)))
    text = np.array([f"prompt {one}" for one in range(prompts)])[number]
    style = np.array(STYLES)[number * len(STYLES) // prompts]
    parts = [
        pa.table(
            {
                "model": np.repeat(model, len(seed)),
                "prompt": text,
                "style": style,
                "seed": seed,
                "metric": np.repeat(name, len(seed)),
                "value": generator.normal(mean, 0.1, len(seed)),
            }
        )
        for model, mean in ((BASE, 0.5), (ALIGNED, 0.51))
        for name in names
    ]
    return pa.concat_tables(parts)


def _seconds(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    took = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    return done, {name: round(seconds, 2) for name, seconds in took.items()}


def _rule(metric: str, compare: str) -> GateRule:
    return GateRule.model_validate(
        {"metric": metric, "against": "base", "compare": compare, "side": "at_least", "margin": 0.0}
        | {"severity": "refuse", "meaning": f"{metric} is not worse"}
    )


if __name__ == "__main__":
    main()
