import numpy as np
import pyarrow as pa
import pytest

from srpo_core.config import GateRule, GateSettings

PROMPTS = 12
SEEDS = 2
MODELS = ("base", "aligned", "champion")


def evaluation(**metrics):
    """Return a table like that of evaluate: metric -> (base, aligned[, champion]), each (PROMPTS, SEEDS) or a number."""
    rows = []
    for name, by_model in metrics.items():
        for model, given in zip(MODELS, by_model, strict=False):
            figures = np.broadcast_to(np.asarray(given, dtype=float), (PROMPTS, SEEDS))
            for prompt in range(PROMPTS):
                for seed in range(SEEDS):
                    row = {"model": model, "prompt": f"prompt {prompt}", "seed": seed, "metric": name}
                    row |= {"style": "animals" if prompt % 2 else "food"}
                    rows.append(row | {"value": float(figures[prompt, seed])})
    return pa.Table.from_pylist(rows)


def rule(**changes):
    values = {
        "metric": "quality",
        "against": "base",
        "compare": "difference",
        "side": "at_least",
        "margin": 0.05,
        "severity": "refuse",
        "meaning": "the images are better than before",
    }
    return GateRule.model_validate(values | changes)


def gate(objective="quality", **rules):
    return GateSettings(confidence=0.95, resamples=2000, objective=objective, rules=rules)


@pytest.fixture
def make():
    """Return the functions that build tables, rules and gates."""

    class Makers:
        table = staticmethod(evaluation)
        rule = staticmethod(rule)
        gate = staticmethod(gate)

    return Makers
