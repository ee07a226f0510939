import numpy as np
import pyarrow as pa
import pytest

from srpo_core.config import GateRule, GateSettings

PROMPTS = 12
SEEDS = 2


def evaluation(**metrics):
    """A table as evaluate leaves it: metric -> (base figures, aligned figures), each (PROMPTS, SEEDS) or a number."""
    rows = []
    for side, model in enumerate(("base", "aligned")):
        for prompt in range(PROMPTS):
            for seed in range(SEEDS):
                row = {"model": model, "prompt": f"prompt {prompt}", "seed": seed}
                row |= {"style": "animals" if prompt % 2 else "food", "png": b"png"}
                for name, pair in metrics.items():
                    figures = np.broadcast_to(np.asarray(pair[side], dtype=float), (PROMPTS, SEEDS))
                    row[name] = float(figures[prompt, seed])
                rows.append(row)
    return pa.Table.from_pylist(rows)


def rule(**changes):
    values = {
        "metric": "quality",
        "against": "base",
        "bound": "lower",
        "at_least": 0.05,
        "at_most": None,
        "severity": "refuse",
        "meaning": "the pictures are better than before",
    }
    return GateRule.model_validate(values | changes)


def gate(**rules):
    return GateSettings(confidence=0.95, resamples=2000, rules=rules)


@pytest.fixture
def make():
    """The makers of tables, rules and gates."""

    class Makers:
        table = staticmethod(evaluation)
        rule = staticmethod(rule)
        gate = staticmethod(gate)

    return Makers
