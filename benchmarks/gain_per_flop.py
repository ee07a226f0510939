"""Rank training methods by what they gain for their compute: one table from measured rows, measured costs and the plan.

    python benchmarks/gain_per_flop.py                    # the table, in a minute
    python benchmarks/gain_per_flop.py --add "My method"  # first train, measure and time this line of contenders.py

Gain, subject and diversity are those of benchmarks/compare_tables.py after `--step` steps, with intervals over seeds and
prompts. CPU seconds come from benchmarks/method_costs.py; those of cached pairs, which the stage rollouts generates once,
are not among them. PFLOP are those of a training run at full size, by `srpo plan`: the preset `--profile` with the
method's settings, without early stop's images; models are counted on the meta device, once. The first run generates the
cached pairs, later ones find them. A method is above another if it gains more style per PFLOP of a later run.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from compare import ROWS, WORK
from compare_curves import DIVERSITY, STYLE, SUBJECT, Curve, Estimate, change, read_curves
from contenders import CONTENDERS, PAIRS, Contender, named
from method_costs import COSTS, Costs, read_costs
from prepared import ROOT

from srpo_core.config import Settings, parse_settings, patched, profile_path, read_values

PROFILE: Final = "flux1_dev"
PETA: Final = 1e15
TITLES: Final = (
    *("method", "seeds", "style gained", "subject, top-1", "diversity, share of the base's"),
    *("CPU s of a step", "CPU s", "PFLOP, first run", "PFLOP, later runs", "style per 100 PFLOP"),
)


@dataclass(frozen=True)
class Row:
    """What a method gains and costs; step_seconds and seconds: CPU seconds; pflop: of the first and of a later run."""

    method: str
    seeds: int
    gained: Estimate
    subject: Estimate
    diversity: Estimate
    step_seconds: float
    seconds: float
    pflop: tuple[float, float]

    @property
    def efficiency(self) -> float:
        """Style gained per 100 PFLOP of a later run."""
        return 100 * self.gained.value / self.pflop[1]


class FullSize:
    """Training at full size, planned for one method after another; nothing is counted before the first."""

    def __init__(self, profile: str, counter: Any = None) -> None:
        """counter: a `Counter` of srpo_core/plan/making.py that may know the models already."""
        self.profile, self.counter = profile, counter

    def settings(self, contender: Contender) -> Settings:
        """Return the preset's settings with the method's."""
        values: dict[str, Any] = read_values(profile_path(self.profile, ROOT))
        for changed in (contender.train, contender.full):
            values = patched(values, {"train": dict(changed)})
        values = patched(values, {"train": {"steps": values["train"]["steps"] * contender.length}})
        return parse_settings(values, f"benchmarks/contenders.py, {contender.name}")

    def pflop(self, contender: Contender) -> tuple[float, float]:
        """Return the PFLOP of the first and of a later run, over all devices."""
        from srpo_core.plan import Plan

        plan = Plan(replace(self._case, settings=self.settings(contender)))
        return plan.flops_of_first_run / PETA, plan.flops_of_later_runs / PETA

    @cached_property
    def _case(self) -> Any:
        """The preset on one device, because FLOPs do not depend on how many share them."""
        from srpo_core.plan import Cluster
        from srpo_core.plan.making import Counter

        settings = parse_settings(read_values(profile_path(self.profile, ROOT)), self.profile)
        cluster = Cluster(1, 80e9, None, 0.4, 989e12, 300e9)
        return (self.counter or Counter()).plan(settings, cluster).case


def rows_of(curves: Sequence[Curve], costs: Costs, full: FullSize, step: int) -> list[Row]:
    """Return the rows of the methods that were measured at a step, times their length, the best first."""
    rows = []
    for curve in curves:
        last = step * named(curve.method).length
        found = curve.at_step(last)
        if found is not None:
            changes = [change(metric, found, curve.base) for metric in (STYLE, SUBJECT, DIVERSITY)]
            seconds = (costs.seconds(curve.method), curve.seconds_at(last))
            rows.append(
                Row(curve.method, len(curve.seeds), *changes, *seconds, full.pflop(named(curve.method)))
            )
    return sorted(rows, key=lambda row: -row.efficiency)


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table in Markdown."""
    lines: list[Sequence[str]] = [TITLES, ["---"] * len(TITLES)]
    for row in rows:
        diversity = f"{row.diversity.value:.2f} ({row.diversity.low:.2f} to {row.diversity.high:.2f})"
        figures = (
            f"{row.step_seconds:.2f}",
            f"{row.seconds:.0f}",
            *(f"{one:.0f}" for one in row.pflop),
            f"{row.efficiency:+.3f}",
        )
        lines.append([row.method, str(row.seeds), str(row.gained), str(row.subject), diversity, *figures])
    return ["| " + " | ".join(line) + " |" for line in lines]


def add(method: str, options: argparse.Namespace) -> None:
    """Train and measure a method, and time its step; both replace what the files have of it."""
    work = ["--work", str(options.work)]
    seeds = ["--seeds", str(options.seeds)] if options.seeds else []
    compare = ["--methods", method, "--pairs", *options.pairs, "--rows", str(options.rows), *seeds, *work]
    _run("compare.py", [*compare, "--steps", str(options.steps), "--every", str(options.every)])
    _run("method_costs.py", ["--methods", method, "--costs", str(options.costs), *work])


def _run(script: str, words: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), *words], check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks/{script} failed with exit code {done.returncode}")


def main() -> None:
    """Print the table of each pair of control words."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [one.name for one in CONTENDERS]
    parser.add_argument("--add", choices=names, metavar="METHOD", help="train, measure and time it first")
    parser.add_argument("--step", type=int, default=30, help="the step of the table")
    parser.add_argument("--profile", default=PROFILE, help="the preset at full size")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", type=int, help="with --add: at most so many seeds")
    parser.add_argument("--steps", type=int, default=60, help="with --add: optimizer steps")
    parser.add_argument("--every", type=int, default=10, help="with --add: steps between two measurements")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--costs", type=Path, default=COSTS)
    parser.add_argument("--work", type=Path, default=WORK, help="directory of finished cells")
    options = parser.parse_args()
    for name in ("rows", "costs", "work"):
        setattr(options, name, getattr(options, name).resolve())
    if options.add:
        add(options.add, options)
    costs, full = read_costs(options.costs), FullSize(options.profile)
    pairs = read_curves(options.rows, costs)
    print(f"CPU seconds of {costs.processor}; PFLOP of {options.profile}, by srpo plan")
    for pair, curves in pairs.items():
        if pair in options.pairs:
            print("\n".join(["", f"{pair.replace('_', ' ')}: after {options.step} steps", ""]))
            print("\n".join(table(rows_of(curves, costs, full, options.step))), flush=True)


if __name__ == "__main__":
    main()
