"""Simulate select with successive halving beside a comparison of all checkpoints on all prompts.

python benchmarks/halving.py [SCORES ...]      scores.parquet of select's runs without halving; a column `run` tells several apart

Default: the five seeds of the demo in tests/selection/data. A simulated run draws as many prompts as there are, with
replacement. For each number of rounds and each distance, prints as a JSON line:

- `same`: how often the checkpoint is the one that all prompts choose;
- `images`: the checkpoints' images as a share of those without halving; the base has all of them in both cases;
- `lost`, `lost_without`: how far the chosen checkpoint is behind the best one on average, in the metric that is maximized,
  with and without halving. The best one is that of the undrawn prompts.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from srpo_core.config import HalvingSettings, SelectSettings, load_settings
from srpo_core.gates.bootstrap import Floats
from srpo_core.selection.choice import choose
from srpo_core.selection.halving import BASE_STEP, Figures, compare_in_rounds, means_of, round_sizes

ROOT: Final = Path(__file__).parents[1]
SCORES: Final = ROOT / "tests/selection/data/select_scores.parquet"
ROUNDS: Final = (2, 3, 4)
DISTANCES: Final = (0.0, 1.0, 2.0)

Run = Mapping[int, Mapping[str, Floats]]  # by step and metric: (prompts, seeds)


def main() -> None:
    """Print one line for each number of rounds and each distance."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", nargs="*", type=Path, default=[SCORES])
    parser.add_argument("--settings", type=Path, default=ROOT / "profiles/tiny.yaml")
    parser.add_argument("--sets", type=int, default=1000, help="simulated runs for each line")
    options = parser.parse_args()
    select = load_settings(options.settings).select
    runs = [run for path in options.scores for run in read_runs(path, select)]
    for rounds in ROUNDS:
        for distance in DISTANCES:
            halving = HalvingSettings(rounds=rounds, distance=distance)
            line = simulated(runs, select.model_copy(update={"halving": halving}), options.sets)
            print(json.dumps(line), flush=True)


def read_runs(path: Path, select: SelectSettings) -> Iterator[Run]:
    """Yield the figures of each run in a table of scores."""
    import pyarrow.parquet as pq

    frame = pq.read_table(path).to_pandas()
    metrics = sorted({select.maximize, *select.keep})
    groups = [frame] if "run" not in frame else [own for _, own in frame.groupby("run")]
    for own in groups:
        yield {
            int(step): {
                name: rows[name].to_numpy(float).reshape(-1, select.seeds_per_prompt) for name in metrics
            }
            for step, rows in own.groupby("step")
        }


def simulated(runs: Sequence[Run], select: SelectSettings, sets: int) -> dict[str, Any]:
    """Simulate runs of select; see the description of this file."""
    assert select.halving is not None, "this is what is simulated"
    draw = np.random.default_rng(0)
    same, images, lost, lost_without = 0, [], [], []
    for number in range(sets):
        run = runs[number % len(runs)]
        prompts = len(run[BASE_STEP][select.maximize])
        rows = draw.integers(0, prompts, prompts)
        chosen, share = halved(run, rows, select)
        of_all = chosen_by(run, rows, select)
        truth = {step: float(own[select.maximize].mean()) for step, own in run.items() if step != BASE_STEP}
        best = truth[chosen_by(run, np.arange(prompts), select)]
        same += chosen == of_all
        images.append(share)
        lost.append(best - truth[chosen])
        lost_without.append(best - truth[of_all])
    return {
        "rounds": select.halving.rounds,
        "distance": select.halving.distance,
        "sets": sets,
        "same": round(same / sets, 3),
        "images": round(float(np.mean(images)), 3),
        "lost": round(float(np.mean(lost)), 4),
        "lost_without": round(float(np.mean(lost_without)), 4),
    }


def halved(run: Run, rows: Any, select: SelectSettings) -> tuple[int, float]:
    """Return the checkpoint that halving chooses on some prompts, and its share of the checkpoints' images."""
    sizes = [0, *round_sizes(len(rows), select.halving)]

    def measured(step: int, number: int) -> Figures:
        return figures_of(run, step, rows[sizes[number] : sizes[number + 1]])

    steps = [step for step in run if step != BASE_STEP]
    compared = compare_in_rounds(steps, sizes[1:], measured, select)
    generated = sum(len(compared.figures[step][select.maximize]) for step in steps)
    means = {step: means_of(compared.figures[step]) for step in (BASE_STEP, *compared.finalists)}
    return choose(means, select).step, generated / (len(steps) * len(rows) * select.seeds_per_prompt)


def chosen_by(run: Run, rows: Any, select: SelectSettings) -> int:
    """Return the checkpoint that a comparison of all on some prompts chooses."""
    return choose({step: means_of(figures_of(run, step, rows)) for step in run}, select).step


def figures_of(run: Run, step: int, rows: Any) -> Figures:
    """Return the figures of a step's images of some prompts."""
    return {name: values[rows].ravel().tolist() for name, values in run[step].items()}


if __name__ == "__main__":
    main()
