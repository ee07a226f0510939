"""Train each method until it does harm, and test whether the gate refuses it there. Prints JSON lines.

For every method, seed and learning rate, trains once with the pipeline's stages, then evaluates every checkpoint on
the test prompts and applies the gate. A line has the step, the verdict, the rules that refuse, and the figures that
show harm. Training ends where the alarm ends it (docs/alarm.md): later checkpoints do not exist. The last lines have, per
method, the step at which harm begins (an independent figure is worse than the base's beyond its interval), whether the
gate refused every harmful checkpoint, and the step at which the alarm ended training.

Run it in a checkout in which `dvc repro check_reward` has run. All files are written below --work.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prepared import ROOT, prepare, run_srpo, run_stage

from srpo_core.algorithm import METHODS
from srpo_core.artifacts import TRAIN_OUTCOME, step_directory, step_name
from srpo_core.config import PARAMS_FILE, Settings, parse_settings, patched, read_values
from srpo_core.training.steps import checkpoint_steps

# figures that are independent of the objective, with the sign of a change for the worse
HARM = {"judge_wanted": -1, "judge_top5": -1, "kid": 1}


def main() -> None:
    """Train, evaluate and print."""
    options = _options()
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for rate in options.rates:
                work = options.work / f"{method}-seed{seed}-rate{rate:g}"
                for row in _train_and_evaluate(work, method, seed, rate, options):
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    for line in summaries(rows):
        print(json.dumps(line), flush=True)


def summaries(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield per method and rate the first harmful step of each seed, and the harmful checkpoints that passed."""
    for method, rate in dict.fromkeys((row["method"], row["rate"]) for row in rows):
        own = [row for row in rows if (row["method"], row["rate"]) == (method, rate)]
        harmful = [row for row in own if row["harm"]]
        first = {row["seed"]: row["step"] for row in reversed(harmful)}
        yield {
            "method": method,
            "rate": rate,
            "checkpoints": len(own),
            "passed": sum(row["passed"] for row in own),
            "harm_begins": first or "never",
            "harmful": len(harmful),
            "harmful_but_passed": [(row["seed"], row["step"]) for row in harmful if row["passed"]],
            "alarm": {row["seed"]: row["alarm"] for row in own if row["alarm"]} or "never",
        }


def harm_of(decision_figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the independent figures that are worse than the base's beyond their interval."""
    found = []
    for name, sign in HARM.items():
        figure = decision_figures.get(name)
        if figure and (figure["high"] < 0 if sign < 0 else figure["low"] > 0):
            found.append(name)
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps; default: as in params.yaml")
    parser.add_argument("--every", type=int, help="steps between checkpoints; default: as in params.yaml")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        default=[1.0, 5.0],
        help="learning rates, as multiples of the setting",
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".srpo/overtrain")
    return parser.parse_args()


def _train_and_evaluate(
    work: Path, method: str, seed: int, rate: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    settings, values = _settings(method, seed, rate, options)
    prepare(work, values, {name: ROOT / name for name in ("runs/ingest", "runs/check_reward")})
    run_stage(work, "embed")
    run_stage(work, "rollouts")
    run_stage(work, "train")
    outcome = json.loads((work / TRAIN_OUTCOME).read_text())
    alarm = outcome["steps"] if outcome["stopped_early"] else None
    for step in [one for one in checkpoint_steps(settings.train) if one <= outcome["steps"]]:
        target = work / "evaluations" / step_name(step)
        if not (target / "decision.json").exists():
            command = ["evaluate", str(step_directory(step)), "--output", str(target)]
            run_srpo(work, command, allowed=(0, 3))
        decision = json.loads((target / "decision.json").read_text())
        figures = _changes(target, seed, settings)
        yield {
            "method": method,
            "seed": seed,
            "rate": rate,
            "step": step,
            "alarm": alarm,
            "passed": decision["passed"],
            "refused_by": [rule["name"] for rule in decision["rules"] if rule["verdict"] == "refuses"],
            "harm": harm_of(figures),
            "changes": {
                name: [round(one[key], 4) for key in ("value", "low", "high")]
                for name, one in figures.items()
            },
        }


def _changes(target: Path, seed: int, settings: Settings) -> dict[str, dict[str, float]]:
    """Return the change of every metric from the base, with its interval."""
    from srpo_core.artifacts import read_table
    from srpo_core.config import GateRule
    from srpo_core.gates.pairs import pair_up
    from srpo_core.gates.rules import measure_rules

    path = target / "figures.parquet"
    pairs = pair_up(read_table(path), path)
    shared = {"against": "base", "compare": "difference", "side": "at_least", "margin": 0.0}
    shared |= {"severity": "refuse", "meaning": "it is not less"}
    rules = {name: GateRule.model_validate(shared | {"metric": name}) for name in pairs.metrics}
    measured = measure_rules(rules, pairs, seed=seed, gate=settings.gate)
    return {
        name: {"value": one.value, "low": one.low, "high": one.high}
        for name, one in measured.items()
        if math.isfinite(one.value)
    }


def _settings(
    method: str, seed: int, rate: float, options: argparse.Namespace
) -> tuple[Settings, dict[str, Any]]:
    values = dict(read_values(ROOT / PARAMS_FILE))
    train: dict[str, Any] = {"method": method}
    train["optimizer"] = {"learning_rate": values["train"]["optimizer"]["learning_rate"] * rate}
    train |= {"steps": options.steps, "checkpoint_every": options.every}
    merged = patched(values, {"seed": seed, "train": train})
    return parse_settings(merged, str(PARAMS_FILE)), merged


if __name__ == "__main__":
    main()
