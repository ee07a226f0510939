"""Compare training methods on the tiny family: what each gains and loses, at equal steps and at equal CPU seconds.

    python benchmarks/compare.py                     # all methods, pairs of control words and seeds: `make compare`
    python benchmarks/compare.py --methods ReFL --pairs ink_over_3d --seeds 1
    python benchmarks/compare_tables.py              # the tables and charts of docs/comparison.md from the rows

benchmarks/contenders.py has the methods. Each is trained by the `Worker` of stage train from the same base, prompts and
noise, without early stop. Every `--every` steps the images of the test prompts are measured with the metrics of `METRICS`
by the gate's judge, which no method uses. CPU seconds of the rows are those of the training steps alone, on one thread,
beside whatever else the machine did; tables use the costs of benchmarks/method_costs.py instead.

One cell is a method, a pair and a seed. A cell that is finished with the same settings and code is not run again, so the
same command continues after a kill. At the end all cells are written to `--rows`: a row for each prompt and
checkpoint, with the means over the prompt's images. Rows of methods and pairs that this command did not name stay.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from contenders import BASE, CONTENDERS, PAIRS, named, settings_of
from prepared import ROOT, prepare, run_stage

from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, Settings, TrainSettings, patched, read_values

METRICS: Final = (
    "judge_wanted",
    "judge_top1",
    "judge_top5",
    "diversity",
    "kid",
    "reward",
    "relative_reward",
    "contrast",
    "log_detail",
    "clipped_highlights",
)
# code that decides what a cell's rows are
CODE: Final = ("algorithm", "training", "models", "scorers", "generation", "randomness.py")
ROWS: Final = ROOT / "benchmarks/rows/compare.parquet"
WORK: Final = ROOT / ".srpo/compare"
KEY: Final = b"srpo_key"


@dataclass(frozen=True)
class Cell:
    """A method, a pair of control words and a seed; steps: the last step of methods with length 1."""

    method: str
    pair: str
    seed: int
    steps: int
    every: int

    @property
    def name(self) -> str:
        """The name of the cell's file."""
        letters = "".join(one if one.isalnum() else "_" for one in self.method)
        return f"{letters}-{self.pair}-{self.seed}"

    def settings(self) -> Settings:
        """The settings of the cell; those of the base train nothing."""
        train, length = (
            ({}, 1) if self.method == BASE else (named(self.method).train, named(self.method).length)
        )
        steps = self.steps * length
        values = read_values(ROOT / PARAMS_FILE)
        return settings_of(
            values, train, pair=self.pair, seed=self.seed, steps=steps, every=self.every * length
        )

    def key(self) -> str:
        """A hash of what decides the cell's rows: settings and code."""
        digest = hashlib.sha256(self.settings().model_dump_json().encode() + self.method.encode())
        for name in CODE:
            place = ROOT / "srpo_core" / name
            for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
                digest.update(path.read_bytes())
        return digest.hexdigest()


def main() -> None:
    """Run the cells that are missing, two at a time by default, and write all rows into one file."""
    options = _options()
    if options.cell:
        run_cell(Cell(**json.loads(options.cell)), options.work)
        return
    cells = list(cells_of(options))
    missing = [cell for cell in cells if not is_finished(cell, options.work)]
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished", flush=True)
    for cell in missing:  # one after another, because cells share what is prepared
        prepare_cell(cell, options.work)
    with ThreadPoolExecutor(options.jobs) as pool:
        started = {pool.submit(_run_in_process, cell, options.work): cell for cell in missing}
        for number, done in enumerate(as_completed(started), 1):
            print(f"{number} of {len(missing)}: {started[done].name} in {done.result():.0f} s", flush=True)
    write_rows(cells, options.work, options.rows)
    print(f"wrote {options.rows}")


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells, seed by seed, so that an interrupted comparison has all methods with the same seeds."""
    most = max(one.seeds for one in CONTENDERS)
    for seed in range(min(most, options.seeds or most)):
        for pair in options.pairs:
            chosen = [one for one in CONTENDERS if one.name in options.methods and seed < one.seeds]
            for method in [BASE, *(one.name for one in chosen)] if chosen else []:
                yield Cell(method, pair, seed, options.steps, options.every)


def run_cell(cell: Cell, work: Path) -> None:
    """Train and measure one cell; write its rows."""
    import torch
    from trial import job_of

    from srpo_core.training.refresh import begins_block
    from srpo_core.training.steps import checkpoint_steps
    from srpo_core.training.worker import Worker

    torch.set_num_threads(1)
    settings, state, target = cell.settings(), work / "states" / cell.name, _file(cell, work)
    state.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.chdir(prepared(cell, work))
    worker = Worker(job_of(settings, state), rank=0, world=1, device=torch.device("cpu"))
    rows: list[dict[str, Any]] = []
    if cell.method == BASE:
        rows += measured_rows(worker.model, settings, step=0)
    seconds = 0.0
    for step in range(1, (0 if cell.method == BASE else settings.train.steps) + 1):
        started = time.process_time()
        if begins_block(settings.train, step):
            worker.refresh(step)
        worker.step(step)
        seconds += time.process_time() - started
        if step in checkpoint_steps(settings.train):
            rows += [
                {**row, "cpu_seconds": seconds} for row in measured_rows(worker.model, settings, step=step)
            ]
    shared = {"pair": cell.pair, "method": cell.method, "seed": cell.seed}
    _write([{**shared, "cpu_seconds": 0.0, **row} for row in rows], target, cell.key())


def measured_rows(model: Any, settings: Settings, *, step: int) -> list[dict[str, Any]]:
    """Generate and measure the images of the test prompts; return one row per prompt with the means of its images."""
    from srpo_core.generation.images import ImageSet, generate_and_measure
    from srpo_core.models.embeddings import read_embeddings
    from srpo_core.stages.evaluate import metric_context

    prompts, styles, condition = read_embeddings("test")
    images = ImageSet(
        "evaluate", prompts, styles, condition, settings.evaluate.seeds_per_prompt, settings.seed
    )
    context = metric_context(settings.rewards, settings.judge, settings.control_words, settings.evaluate)
    found = generate_and_measure(
        model, f"step {step}", images, generate=settings.generate, metrics=METRICS, context=context
    )
    by_prompt: dict[str, list[Mapping[str, float]]] = {}
    for image in found:
        by_prompt.setdefault(image.prompt, []).append(image.figures)
    return [
        {"step": step, "prompt": number}
        | {name: sum(one[name] for one in figures) / len(figures) for name in METRICS}
        for number, figures in enumerate(by_prompt.values())
    ]


def prepared(cell: Cell, work: Path) -> Path:
    """Return the directory with the embeddings, and the cached pairs, of the cell's seed and source of images."""
    train = cell.settings().train
    made = f"-{_digest(cell)}" if _is_cached(train) else ""
    return work / f"prepared/{train.rollout.source}{made}-{train.steps}-{cell.seed}"


def prepare_cell(cell: Cell, work: Path) -> None:
    """Run ingest, embed and, for cached pairs, rollouts for a cell, unless another one has needed the same."""
    values, settings = read_values(ROOT / PARAMS_FILE), cell.settings()
    rollout = settings.train.rollout
    # ingest keeps the images that training reads, and cached pairs need none
    stored = "online" if _is_cached(settings.train) else rollout.source
    own, data = prepared(cell, work), work / f"prepared/data-{stored}"
    train = {"steps": settings.train.steps, "rollout": rollout.model_dump(mode="json")}
    prepare(data, patched(values, {"seed": cell.seed, "train": {"rollout": {"source": stored}}}), {})
    run_stage(data, "ingest")
    changed = patched(values, {"seed": cell.seed, "train": train})
    prepare(own, changed, {"runs/ingest": data / "runs/ingest"})
    run_stage(own, "embed")
    if _is_cached(settings.train):
        run_stage(own, "rollouts")


def _digest(cell: Cell) -> str:
    """Return a short hash of what decides the pairs of a cell besides its prompts: settings and code."""
    from srpo_core.generation.rollouts import CODE_OF_PAIRS

    settings = cell.settings()
    parts = [settings.model.model_dump_json(), settings.train.rollout.model_dump_json()]
    code = [ROOT / "srpo_core" / name for name in CODE_OF_PAIRS]
    digest = hashlib.sha256(json.dumps(parts).encode())
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def _is_cached(train: TrainSettings) -> bool:
    return train.rollout.source == "cached"


def is_finished(cell: Cell, work: Path) -> bool:
    """Return whether the cell's rows are those of its settings and of this code."""
    import pyarrow.parquet as pq

    path = _file(cell, work)
    return path.is_file() and (pq.read_schema(path).metadata or {}).get(KEY) == cell.key().encode()


def write_rows(cells: list[Cell], work: Path, path: Path) -> None:
    """Write the rows of these cells into the file, in place of its rows of the same methods, pairs and seeds of the base."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(_file(cell, work)).replace_schema_metadata() for cell in cells]
    if path.is_file():
        tables = [without(pq.read_table(path), cells), *tables]
    path.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.replacing(path) as partial:
        pq.write_table(
            pa.concat_tables(tables), partial, compression="zstd", use_dictionary=["pair", "method"]
        )


def without(table: Any, cells: list[Cell]) -> Any:
    """Return the rows of other methods and pairs than these cells'; of the base, those of other pairs and seeds."""
    methods = {(cell.method, cell.pair) for cell in cells if cell.method != BASE}
    bases = {(cell.pair, cell.seed) for cell in cells if cell.method == BASE}
    names = (table[name].to_pylist() for name in ("method", "pair", "seed"))
    kept = [
        (pair, seed) not in bases if method == BASE else (method, pair) not in methods
        for method, pair, seed in zip(*names, strict=True)
    ]
    return table.filter(kept)


def _write(rows: list[dict[str, Any]], path: Path, key: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers = ("pair", "method"), ("seed", "step", "prompt")
    schema = pa.schema(
        [(name, pa.string()) for name in texts]
        + [(name, pa.int32()) for name in numbers]
        + [(name, pa.float32()) for name in ("cpu_seconds", *METRICS)],
        metadata={KEY: key.encode()},
    )
    with artifacts.replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema), partial)


def _file(cell: Cell, work: Path) -> Path:
    return work / "cells" / f"{cell.name}.parquet"


def _run_in_process(cell: Cell, work: Path) -> float:
    """Run a cell in a process of its own; return its wall time. A cell that fails ends the comparison."""
    started = time.monotonic()
    words = ["--cell", json.dumps(cell.__dict__), "--work", str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SRPO_HOME": str(work / ".srpo")}
    done = subprocess.run(
        [sys.executable, __file__, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise SystemExit(f"{cell.name} failed: {done.stderr.strip().splitlines()[-1]}")
    return time.monotonic() - started


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [one.name for one in CONTENDERS]
    parser.add_argument("--methods", nargs="+", default=names, choices=names, metavar="METHOD")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--seeds", type=int, help="at most so many seeds of each method")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once, each on one thread")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of finished cells")
    parser.add_argument("--rows", type=Path, default=ROWS, help="the file to write")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work, options.rows = options.work.resolve(), options.rows.resolve()
    return options


if __name__ == "__main__":
    main()
