"""Measure what an optimizer step of each method of benchmarks/contenders.py costs, as a ratio to the reference method's.

    python benchmarks/method_costs.py                      # all methods: benchmarks/rows/method_costs.json; 5 CPU minutes
    python benchmarks/method_costs.py --methods ReFL       # measure one again, the others stay

All methods train at the same time in one process, on one thread: in each round, each takes one step. So they share what
else the machine does, and a method's ratio is that of two steps of the same round: the median over the rounds, with the
quartiles. benchmarks/compare_tables.py computes CPU seconds from these ratios, because those that a comparison sees
depend on what runs beside it. CPU seconds are those of the processor that the file names.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from compare import WORK, Cell, prepare_cell, prepared
from contenders import CONTENDERS, PAIRS, REFERENCE

from srpo_core import artifacts

COSTS: Final = Path(__file__).resolve().parent / "rows/method_costs.json"
ALL_STEPS: Final = 60
FEWEST_ROUNDS: Final = 3


@dataclass(frozen=True)
class Cost:
    """CPU seconds of a step over those of the reference method: median and quartiles over the rounds."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Costs:
    """The costs of all methods; reference_seconds: CPU seconds of a step of the reference method on `processor`."""

    processor: str
    rounds: int
    reference_seconds: float
    methods: Mapping[str, Cost]

    def seconds(self, method: str) -> float:
        """Return the CPU seconds of a step. Raises `SystemExit` if the method has not been measured."""
        if method not in self.methods:
            raise SystemExit(
                f"{COSTS} has no cost of {method!r}: run 'python benchmarks/method_costs.py --methods \"{method}\"'"
            )
        return self.reference_seconds * self.methods[method].ratio


def read_costs(path: Path = COSTS) -> Costs:
    """Read the costs. Raises `SystemExit` if there is no such file."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: run 'python benchmarks/method_costs.py'")
    values = json.loads(path.read_text(encoding="utf-8"))
    methods = {name: Cost(**one) for name, one in values.pop("methods").items()}
    return Costs(**values, methods=methods)


def write_costs(costs: Costs, path: Path = COSTS) -> None:
    """Write the costs as JSON, rounded to four digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(one) for key, one in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.replacing(path) as partial:
        partial.write_text(json.dumps(rounded(asdict(costs)), indent=1) + "\n", encoding="utf-8")


def costs_of(seconds: Mapping[str, Sequence[float]]) -> dict[str, Cost]:
    """Return the costs from the CPU seconds of each method's steps, one for each round, three at least."""
    found = {}
    for method, own in seconds.items():
        ratios = [one / reference for one, reference in zip(own, seconds[REFERENCE], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        found[method] = Cost(median(ratios), low, high)
    return found


def measured(methods: Sequence[str], *, rounds: int, work: Path) -> dict[str, list[float]]:
    """Train all methods in turn; return the CPU seconds of each step after the first."""
    import torch

    from srpo_core.training.refresh import begins_block

    torch.set_num_threads(1)
    workers = {method: _worker(method, work) for method in methods}
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for step in range(1, rounds + 2):
        for method, worker in workers.items():
            started = time.process_time()
            if begins_block(worker.job.train, step):
                worker.refresh(step)
            worker.step(step)
            seconds[method].append(time.process_time() - started)
    return {method: own[1:] for method, own in seconds.items()}


def _worker(method: str, work: Path) -> Any:
    """Return a trainer of the method, with the prompts of a comparison's first cell."""
    import torch
    from trial import job_of

    from srpo_core.training.worker import Worker

    cell = Cell(method, next(iter(PAIRS)), 0, ALL_STEPS, ALL_STEPS)
    prepare_cell(cell, work)
    state = work / "states/costs"
    state.mkdir(parents=True, exist_ok=True)
    os.chdir(prepared(cell, work))
    return Worker(job_of(cell.settings(), state), rank=0, world=1, device=torch.device("cpu"))


def processor_name() -> str:
    """Return the name of this machine's processor, as Linux reports it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def main() -> None:
    """Measure the methods, beside the reference method, and write their costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [one.name for one in CONTENDERS]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--rounds", type=int, default=12, help="measured steps of each method, 3 or more")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of what a comparison prepares")
    parser.add_argument("--costs", type=Path, default=COSTS, help="the file to write")
    options = parser.parse_args()
    if options.rounds < FEWEST_ROUNDS:
        parser.error(f"--rounds must be {FEWEST_ROUNDS} or more: a cost has quartiles")
    work, path = options.work.resolve(), options.costs.resolve()
    found = measured(
        [REFERENCE, *(m for m in options.methods if m != REFERENCE)], rounds=options.rounds, work=work
    )
    write_costs(with_costs(read_costs(path) if path.is_file() else None, found), path)
    for name, cost in read_costs(path).methods.items():
        print(f"{name:28} {cost.ratio:.3f} ({cost.low:.3f} to {cost.high:.3f})")
    print(f"wrote {path}")


def with_costs(known: Costs | None, seconds: Mapping[str, Sequence[float]]) -> Costs:
    """Return the known costs with those that were measured now; if all were measured now, of this processor."""
    found = costs_of(seconds)
    if known is None or set(known.methods) <= set(found):
        return Costs(processor_name(), len(seconds[REFERENCE]), median(seconds[REFERENCE]), found)
    again = {name: cost for name, cost in found.items() if name != REFERENCE}
    return Costs(known.processor, known.rounds, known.reference_seconds, {**known.methods, **again})


if __name__ == "__main__":
    main()
