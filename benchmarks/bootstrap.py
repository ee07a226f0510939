"""How long the gate's intervals take on the full benchmark: 3,200 prompts, 4 seeds, 12 metrics, 10,000 resamples."""

import argparse
import json
import time

import numpy as np

from srpo_core.config import GateRule, GateSettings
from srpo_core.gates.pairs import Pairs
from srpo_core.gates.rules import measure_rules

STYLES = ("anime", "concept-art", "paintings", "photo")


def main() -> None:
    """Print one JSON line with CPU and wall seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("prompts", 3200), ("seeds", 4), ("metrics", 12), ("resamples", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    size = parser.parse_args()
    names = [f"metric_{number}" for number in range(size.metrics)]
    draw = np.random.default_rng(0)
    count = size.prompts * size.seeds
    pairs = Pairs(
        prompts=tuple(f"prompt {number}" for number in range(size.prompts)),
        styles=tuple(STYLES[number * len(STYLES) // size.prompts] for number in range(size.prompts)),
        prompt_index=np.repeat(np.arange(size.prompts), size.seeds),
        seeds=np.tile(np.arange(size.seeds), size.prompts),
        base={name: draw.normal(0.5, 0.1, count) for name in names},
        aligned={name: draw.normal(0.51, 0.1, count) for name in names},
        champion=None,
    )
    rules = {
        f"{name} {compare}": _rule(name, compare) for name in names for compare in ("difference", "win_rate")
    }
    gate = GateSettings(confidence=0.95, resamples=size.resamples, objective=names[0], rules=rules)
    wall, cpu = time.perf_counter(), time.process_time()
    measure_rules(rules, pairs, seed=0, gate=gate)
    seconds = {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
    print(json.dumps(vars(size) | {"intervals": len(rules)} | {k: round(v, 2) for k, v in seconds.items()}))


def _rule(metric: str, compare: str) -> GateRule:
    return GateRule.model_validate(
        {"metric": metric, "against": "base", "compare": compare, "side": "at_least", "margin": 0.0}
        | {"severity": "refuse", "meaning": f"{metric} is not worse"}
    )


if __name__ == "__main__":
    main()
