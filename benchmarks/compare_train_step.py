"""Compare this project's training step with the reference's, alternating on one machine.

    python benchmarks/compare_train_step.py --spec DIR [--methods exact shared offline] [--steps 20] [--rounds 1]

Each round runs the literal step and then each method, each in a new process with one thread. Prints a JSON line per
method: the mean CPU seconds of a step (of a pair, for `shared`), their ratio to those of the literal step, and the
target for that specification.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TARGETS = {
    ("S", "exact"): {"target": 0.50, "stretch": 0.40},
    ("M", "exact"): {"target": 0.75, "stretch": 0.68},
    ("M", "shared"): {"target": 0.42},
    ("M", "offline"): {"target": 0.32},
}


def measure(spec: Path, method: str, *, steps: int) -> dict[str, Any]:
    """Run the benchmark in a new process and return its figures."""
    script = Path(__file__).with_name("train_step.py")
    command = [sys.executable, str(script), "--spec", str(spec), "--method", method, "--steps", str(steps)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Run the comparison and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["exact", "shared", "offline"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    methods = ["literal", *options.methods]
    rounds = [
        {method: measure(options.spec, method, steps=options.steps) for method in methods}
        for _ in range(options.rounds)
    ]
    seconds = {m: sum(figures[m]["cpu_seconds"] for figures in rounds) / len(rounds) for m in methods}
    for method in methods:
        row = compared(options.spec.name, method, seconds)
        print(json.dumps(row | {"phases": rounds[-1][method]["phases"]}), flush=True)


def compared(spec: str, method: str, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return a method's CPU seconds, their ratio to the literal step's, the target, and whether it is met."""
    ratio = round(seconds[method] / seconds["literal"], 3)
    aim = TARGETS.get((spec, method), {})
    met = {"met": ratio <= aim["target"]} if aim else {}
    return {
        "spec": spec,
        "method": method,
        "cpu_seconds": round(seconds[method], 4),
        "ratio": ratio,
        **aim,
        **met,
    }


if __name__ == "__main__":
    main()
