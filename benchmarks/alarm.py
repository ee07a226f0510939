"""Measure how often early stop raises a false alarm and how soon it finds planted faults, on rows of real images.

python benchmarks/alarm.py --runs 1000          prints JSON lines, and writes docs/alarm.svg

`benchmarks/alarm_rows.npz` has what is measured of the images of 40 prompts with 16 seeds each: by the tiny base, by an
honest checkpoint (step 30 of the demo), by the same checkpoint from noise that hardly differs within groups of four
seeds, and of the honest images after they were replaced by noise, replaced by another prompt's, or blurred.

A simulated run has 12 evaluations with the limits of the tiny preset. It draws its prompts and its images of the base,
and new images at each evaluation. A fault begins at evaluation 7. Beside it runs the rule that early stop had before:
judge_top5 more than 0.15 below its best at two evaluations in a row. "at every limit" moves the figures of all metrics so
that their means are exactly on their limits: the worst case in which no alarm may come.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from alarm_chart import draw_chart
from numpy.typing import NDArray

from srpo_core.config import EarlyStop, load_settings
from srpo_core.scorers.broken import Evidence, Scores, broken
from srpo_core.scorers.metrics import METRICS
from srpo_core.training.betting import Floats, evidence
from srpo_core.training.limits import BROKEN, Hypothesis, hypotheses, weights

ROOT: Final = Path(__file__).resolve().parents[1]
ROWS: Final = ROOT / "benchmarks/alarm_rows.npz"
CHART: Final = ROOT / "docs/alarm.svg"
EVALUATIONS: Final = 12
BEGINS: Final = 7  # number of the first evaluation with a fault, from 1
GROUP: Final = 4  # seeds of the collapsed model that share their noise
OLD_MARGIN, OLD_PATIENCE = 0.15, 2
RUNS_PER_DRAW: Final = 20  # simulated runs that share their prompts and base images
DRAWS: Final = 64
EVIDENCE: Final = ("reward", "subject", "statistics")

Places = NDArray[np.int64]
Rows = Mapping[str, Floats]
Shares = Callable[[int], float]


def none(number: int) -> float:
    """Return no share."""
    del number
    return 0.0


def at_once(share: float) -> Shares:
    """Return a share from evaluation `BEGINS` on."""
    return lambda number: share if number >= BEGINS else 0.0


def rising(share: float) -> Shares:
    """Return a share that rises from evaluation `BEGINS` to the last one."""
    return lambda number: share * max(0, number - BEGINS + 1) / (EVALUATIONS - BEGINS + 1)


@dataclass(frozen=True)
class Kind:
    """A kind of runs.

    share: of the images that come from the rows `fault`; of the prompts, if `by_prompt`. copied: images are copies of
    the first of their prompt. good: rows of all others. at_limits: move all means to their limits.
    """

    name: str
    fault: str = "honest"
    share: Shares = none
    by_prompt: bool = False
    copied: bool = False
    good: str = "honest"
    at_limits: bool = False


KINDS: Final = (
    Kind("base against base", good="base"),
    Kind("honest model"),
    Kind("at every limit", at_limits=True),
    Kind("25 % noise", "noise", at_once(0.25)),
    Kind("noise rises to 20 %", "noise", rising(0.2)),
    Kind("20 % other subjects", "wrong", at_once(0.2)),
    Kind("other subjects rise to 20 %", "wrong", rising(0.2)),
    Kind("blur", "blur", at_once(1.0)),
    Kind("one seed copied", share=at_once(1.0), by_prompt=True, copied=True),
    Kind("seeds collapse", "collapse", at_once(1.0), by_prompt=True),
)


@dataclass(frozen=True)
class Images:
    """All rows of one kind for the prompts of a run: figures (N, S) by metric, distances (N, S, S)."""

    figures: Rows
    distances: Floats

    def draw(self, places: Places) -> dict[str, Floats]:
        """Return the figures (N, K) of the images at `places` (N, K), and the mean diversity (N, 1)."""
        drawn = {name: np.take_along_axis(values, places, 1) for name, values in self.figures.items()}
        pairs = [rows[np.ix_(some, some)] for rows, some in zip(self.distances, places, strict=True)]
        count = places.shape[1]
        return drawn | {"diversity": np.array([[pair.sum() / (count * (count - 1))] for pair in pairs])}


@dataclass(frozen=True)
class Run:
    """A simulated run: its hypotheses, the rows of its prompts, and the seeds of the images of a prompt."""

    tested: Sequence[Hypothesis]
    images: Mapping[str, Images]
    seeds: int


def prepare(bank: Mapping[str, Rows], rule: EarlyStop, random: np.random.Generator) -> Run:
    """Draw the prompts and the base's images of a run."""
    prompts, seeds = bank["base"]["judge_top5"].shape
    chosen = random.choice(prompts, rule.num_prompts, replace=False)
    of_base = np.stack([random.permutation(seeds)[: rule.base_seeds] for _ in chosen])
    base = evidence_of(bank["base"], chosen, of_base)
    metrics = {limit.metric for limit in rule.limits.values()} - {"diversity"}
    images = {}
    for kind, rows in bank.items():
        everything = np.tile(np.arange(seeds), (len(chosen), 1))
        marks = broken(evidence_of(rows, chosen, everything), base).reshape(len(chosen), -1)
        figures = {name: rows[name][chosen] for name in metrics}
        images[kind] = Images(figures | {BROKEN: marks.double().numpy()}, rows["distances"][chosen])
    ranges = {name: METRICS[name].range for name in (*metrics, "diversity")}
    return Run(hypotheses(rule, images["base"].draw(of_base), ranges), images, rule.seeds_per_prompt)


def evidence_of(rows: Rows, chosen: Places, places: Places) -> Evidence:
    """Return the evidence about the images at `places` (N, K) of the chosen prompts."""
    reward, subject, statistics = (
        np.take_along_axis(rows[name][chosen], places[:, :, None], 1) for name in EVIDENCE
    )
    numbers = torch.arange(len(chosen)).repeat_interleave(places.shape[1])
    texts = torch.eye(len(chosen))[numbers]
    scores = [
        Scores(torch.tensor(one[:, :, chosen]).flatten(0, 1).float(), texts) for one in (reward, subject)
    ]
    return Evidence(numbers, scores, torch.tensor(statistics).flatten(0, 1).float())


def one_evaluation(run: Run, kind: Kind, number: int, random: np.random.Generator) -> dict[str, Floats]:
    """Draw the images of an evaluation and return their figures."""
    good, bad = run.images[kind.good], run.images[kind.fault]
    count, seeds = good.distances.shape[:2]
    places = np.stack([random.permutation(seeds)[: run.seeds] for _ in range(count)])
    share = kind.share(number)
    if kind.by_prompt and share:
        if kind.copied:
            return good.draw(np.repeat(places[:, :1], run.seeds, 1))
        return bad.draw(_within(random.integers(seeds // GROUP, size=(count, 1)), run.seeds, random))
    figures, faulty = good.draw(places), random.random(places.shape) < share
    for name, values in bad.draw(places).items():
        if name != "diversity":
            figures[name] = np.where(faulty, values, figures[name])
    return figures


def _within(groups: Places, seeds: int, random: np.random.Generator) -> Places:
    """Draw different seeds within one group for each prompt."""
    return GROUP * groups + np.stack([random.permutation(GROUP)[:seeds] for _ in groups])


def at_limit(one: Hypothesis, figures: Floats, whole: Floats, random: np.random.Generator) -> Floats:
    """Move figures so that the mean excess over all figures is 0: shift them, or mark images as broken."""
    if one.metric in (BROKEN, "judge_top5"):
        worst = 1.0 if one.sign > 0 else 0.0
        now, then = one.excess(whole).mean(), one.excess(np.full_like(whole, worst)).mean()
        return np.where(random.random(figures.shape) < -now / (then - now), worst, figures)
    low, high = -16.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if one.excess(whole + one.sign * middle).mean() < 0 else (low, middle)
    return figures + one.sign * low


def simulate(
    run: Run, kind: Kind, rule: EarlyStop, random: np.random.Generator
) -> tuple[int | None, int | None]:
    """Return the evaluation at which the alarm came and that at which the old rule came; None if it did not."""
    growth: dict[str, list[Floats]] = {one.name: [] for one in run.tested}
    subjects = [1.0]
    good = run.images[kind.good]
    whole = all_figures(good, run.seeds, random) if kind.at_limits else {}
    for number in range(1, EVALUATIONS + 1):
        figures = one_evaluation(run, kind, number, random)
        subjects.append(float(figures["judge_top5"].mean()))
        for one in run.tested:
            drawn = figures[one.metric]
            if kind.at_limits:
                drawn = at_limit(one, drawn, whole[one.metric], random)
            growth[one.name].append(one.growth(drawn))
    shares = weights([one.limit for one in run.tested])
    total = np.sum(
        [s * evidence(growth[one.name], EVALUATIONS) for s, one in zip(shares, run.tested, strict=True)], 0
    )
    return first(total >= 1 / rule.alpha), old_rule(subjects)


def all_figures(images: Images, seeds: int, random: np.random.Generator) -> dict[str, Floats]:
    """Return the figures of all images, and the diversity of many draws of `seeds` images of each prompt."""
    count, every = images.distances.shape[:2]
    places = [np.stack([random.permutation(every)[:seeds] for _ in range(count)]) for _ in range(DRAWS)]
    drawn = np.concatenate([images.draw(some)["diversity"] for some in places], 1)
    return {**images.figures, "diversity": drawn}


def first(hits: NDArray[np.bool_]) -> int | None:
    """Return the number of the first hit, from 1."""
    return int(np.argmax(hits)) + 1 if hits.any() else None


def old_rule(subjects: Sequence[float]) -> int | None:
    """Return the evaluation at which the margin and the patience of the old rule ended a run; subjects[0] is the base's."""
    falls = 0
    for number in range(1, len(subjects)):
        falls = falls + 1 if subjects[number] < max(subjects[:number]) - OLD_MARGIN else 0
        if falls == OLD_PATIENCE:
            return number
    return None


def summary(kind: Kind, prompts: int, found: Sequence[tuple[int | None, int | None]]) -> dict[str, Any]:
    """Return shares and medians of the runs of one kind."""
    line: dict[str, Any] = {"kind": kind.name, "prompts": prompts, "runs": len(found)}
    for place, name in enumerate(("alarm", "old")):
        hits = [row[place] for row in found if row[place] is not None]
        line |= {
            f"{name}_share": round(len(hits) / len(found), 4),
            f"{name}_median": float(np.median(hits)) if hits else None,
        }
        line[f"{name}_by_evaluation"] = [
            round(sum(hit <= number for hit in hits) / len(found), 4) for number in range(1, EVALUATIONS + 1)
        ]
    return line


def read_bank(path: Path) -> dict[str, dict[str, Floats]]:
    """Read the rows by kind and name. The metric log_detail is one of the statistics of broken images."""
    bank: dict[str, dict[str, Floats]] = {}
    with np.load(path) as file:
        for key in file.files:
            kind, name = key.split(".")
            bank.setdefault(kind, {})[name] = file[key].astype(np.float64)
    for rows in bank.values():
        rows["log_detail"] = rows["statistics"][..., 0]
    return bank


def main() -> None:
    """Simulate runs of every kind, print their shares and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000, help="of each kind without a fault")
    parser.add_argument("--fault-runs", type=int, default=200, help="of each kind with a fault")
    parser.add_argument("--prompts", type=int, nargs="+", default=[16, 40])
    parser.add_argument("--chart", type=Path, default=CHART)
    parser.add_argument("--draw", type=Path, help="draw lines that were printed before, and simulate nothing")
    options = parser.parse_args()
    if options.draw is not None:
        draw_chart(
            [json.loads(line) for line in options.draw.read_text().splitlines()], options.chart, begins=BEGINS
        )
        return
    settings = load_settings(ROOT / "profiles/tiny.yaml").train.early_stop
    assert settings is not None, "the tiny preset has early stop"
    bank, lines = read_bank(ROWS), []
    for prompts in options.prompts:
        rule = settings.model_copy(update={"num_prompts": prompts})
        random = np.random.default_rng(0)
        drawn = [prepare(bank, rule, random) for _ in range(-(-options.runs // RUNS_PER_DRAW))]
        for kind in KINDS:
            random = np.random.default_rng(1)
            runs = options.runs if kind.share is none else options.fault_runs
            found = [simulate(drawn[n // RUNS_PER_DRAW], kind, rule, random) for n in range(runs)]
            lines.append(summary(kind, prompts, found))
            print(json.dumps(lines[-1]), flush=True)
    draw_chart(lines, options.chart, begins=BEGINS)


if __name__ == "__main__":
    main()
