"""Make the tables and charts of the comparison of methods from the rows that benchmarks/compare.py has written.

    python benchmarks/compare_tables.py                  # print the tables
    python benchmarks/compare_tables.py --write docs     # put them into docs/results.md, and the charts beside it

A figure is the mean over training seeds and test prompts. Its interval (95 %) is that of a crossed bootstrap, which draws
seeds and prompts independently, with the base's or the other method's figures of the same seed and prompt. Three seeds
are few, so intervals over seeds are too narrow rather than too wide; the tables say how many there were.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from compare import METRICS, ROWS
from compare_chart import draw_curves
from contenders import BASE, REFERENCE
from numpy.typing import NDArray
from prepared import ROOT

Floats = NDArray[np.float64]

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
STYLE, SUBJECT, DIVERSITY = "judge_wanted", "judge_top1", "diversity"
# a method's gain counts up to the last checkpoint before it loses more of the subject than this
SUBJECT_KEPT: Final = -0.05
COLUMNS: Final = (
    (STYLE, "style gained"),
    ("judge_top5", "subject, top-5"),
    (SUBJECT, "subject, top-1"),
    (DIVERSITY, "diversity, share of the base's"),
    ("kid", "KID"),
    ("relative_reward", "relative reward"),
    ("reward", "plain reward"),
)


@dataclass(frozen=True)
class Curve:
    """The measurements of one method with one pair of control words.

    steps: (K,); cpu: CPU seconds of training up to each step, (S, K); figures: (S, K, P, M) by seed, step, prompt and
    metric of `METRICS`; base: those of the base, (S, P, M).
    """

    method: str
    steps: NDArray[np.int64]
    cpu: Floats
    figures: Floats
    base: Floats

    def at_step(self, step: int) -> Floats | None:
        """Return the figures at a step, (S, P, M), or None if it was not measured."""
        found = np.flatnonzero(self.steps == step)
        return self.figures[:, found[0]] if len(found) else None

    def seconds_at(self, step: int) -> float:
        """Return the mean CPU seconds up to a step that was measured."""
        return float(self.cpu[:, np.flatnonzero(self.steps == step)[0]].mean())

    def at_seconds(self, seconds: float) -> Floats | None:
        """Return the figures after so many CPU seconds, (S, P, M); None if a seed's training was shorter.

        Between two measurements a figure is interpolated, also between the base and the first one.
        """
        if seconds > self.cpu[:, -1].min():
            return None
        cpu = np.concatenate([np.zeros((len(self.cpu), 1)), self.cpu], 1)
        figures = np.concatenate([self.base[:, None], self.figures], 1)
        return np.stack([_between(own, seconds, at) for own, at in zip(figures, cpu, strict=True)])


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it with a sign and three digits."""
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def read_curves(path: Path) -> dict[str, list[Curve]]:
    """Read the rows; return the curves of each pair of control words, in the order of the file.

    Raises:
        SystemExit: there is no such file.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise SystemExit(f"{path} does not exist: run 'make compare', or name the rows with --rows")
    table = pq.read_table(path).to_pandas()
    return {str(pair): list(_curves(own)) for pair, own in table.groupby("pair", sort=False)}


def difference(ours: Floats, theirs: Floats) -> Estimate:
    """Estimate the mean of a difference of figures paired by seed and prompt, each (S, P)."""
    return _estimate(lambda draw: draw(ours) - draw(theirs), ours.shape)


def ratio(ours: Floats, theirs: Floats) -> Estimate:
    """Estimate the ratio of two means of figures paired by seed and prompt, each (S, P)."""
    return _estimate(lambda draw: draw(ours) / draw(theirs), ours.shape)


def change(metric: str, ours: Floats, base: Floats) -> Estimate:
    """Estimate how a figure differs from the base's, both (S, P, M): a ratio for diversity."""
    number = METRICS.index(metric)
    compare = ratio if metric == DIVERSITY else difference
    return compare(ours[..., number], base[..., number])


def table_at_step(curves: Sequence[Curve], step: int) -> list[str]:
    """Return the table of all methods after the same number of steps."""
    rows = []
    for curve in curves:
        found = curve.at_step(step)
        if found is not None:
            cells = [_cell(name, change(name, found, curve.base)) for name, _ in COLUMNS]
            rows.append([curve.method, str(len(found)), f"{curve.seconds_at(step):.0f}", *cells])
    return _markdown(["method", "seeds", "CPU s", *(title for _, title in COLUMNS)], rows)


def table_at_seconds(curves: Sequence[Curve], seconds: float) -> list[str]:
    """Return the table of all methods after the same CPU seconds, with the style gained beside the reference method's."""
    reference = _reference(curves)
    compared = reference.at_seconds(seconds)
    rows = []
    for curve in curves:
        found = curve.at_seconds(seconds)
        if found is None:
            longest = f"its training ends after {curve.cpu[:, -1].min():.0f} CPU s"
            rows.append([curve.method, str(len(curve.cpu)), longest, *["" for _ in COLUMNS]])
            continue
        cells = [_cell(name, change(name, found, curve.base)) for name, _ in COLUMNS]
        rows.append([curve.method, str(len(found)), _beside(found, compared), *cells])
    return _markdown(["method", "seeds", f"style beside {REFERENCE}", *(title for _, title in COLUMNS)], rows)


def table_of_efficiency(curves: Sequence[Curve]) -> list[str]:
    """Return the style that each method gains per CPU second while it keeps the subject."""
    rows = []
    for curve in curves:
        step = last_step_with_subject(curve)
        if step is None:
            rows.append([curve.method, "none", "", "", ""])
            continue
        found = curve.at_step(step)
        assert found is not None, "it is one of the curve's own steps"
        gained, seconds = change(STYLE, found, curve.base), curve.seconds_at(step)
        rows.append(
            [
                curve.method,
                str(step),
                f"{seconds:.0f}",
                str(gained),
                f"{1000 * gained.value / seconds:.1f} ({1000 * gained.low / seconds:.1f} to {1000 * gained.high / seconds:.1f})",
            ]
        )
    return _markdown(
        ["method", "last step with the subject", "CPU s", "style gained", "style per 1,000 CPU s"], rows
    )


def last_step_with_subject(curve: Curve) -> int | None:
    """Return the last step up to which the mean of the subject's top-1 accuracy never fell more than `SUBJECT_KEPT`."""
    number, kept = METRICS.index(SUBJECT), None
    for place, step in enumerate(curve.steps):
        lost = (curve.figures[:, place, :, number] - curve.base[..., number]).mean()
        if lost < SUBJECT_KEPT:
            break
        kept = int(step)
    return kept


def sections(pairs: dict[str, list[Curve]], step: int) -> Iterator[str]:
    """Yield the lines of all tables."""
    for pair, curves in pairs.items():
        seconds = _reference(curves).seconds_at(step)
        yield from [
            "",
            f"#### {pair.replace('_', ' ')}: after {step} steps",
            "",
            *table_at_step(curves, step),
        ]
        yield from ["", f"#### {pair.replace('_', ' ')}: after {seconds:.0f} CPU seconds", ""]
        yield from table_at_seconds(curves, seconds)
        yield from [
            "",
            f"#### {pair.replace('_', ' ')}: style per CPU second",
            "",
            *table_of_efficiency(curves),
        ]


def write_section(lines: Sequence[str], page: Path) -> None:
    """Replace what is between the two marks of a page. Raises `SystemExit` if it has no such marks."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page} has no place for the tables: add the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    page.write_text(before + "\n".join([BEGIN, *lines, "", END]) + rest.split(END)[1], encoding="utf-8")


def _curves(rows: Any) -> Iterator[Curve]:
    by_method = {str(method): own for method, own in rows.groupby("method", sort=False)}
    base = by_method.pop(BASE)
    for method, own in by_method.items():
        seeds, steps = sorted(own["seed"].unique()), sorted(own["step"].unique())
        ordered = own.sort_values(["seed", "step", "prompt"])
        of_base = base[base["seed"].isin(seeds)].sort_values(["seed", "prompt"])
        shape = (len(seeds), len(steps), -1)
        yield Curve(
            method,
            np.array(steps, dtype=np.int64),
            ordered["cpu_seconds"].to_numpy(np.float64).reshape(shape)[..., 0],
            ordered[list(METRICS)].to_numpy(np.float64).reshape(*shape, len(METRICS)),
            of_base[list(METRICS)].to_numpy(np.float64).reshape(len(seeds), -1, len(METRICS)),
        )


def _between(figures: Floats, seconds: float, cpu: Floats) -> Floats:
    """Interpolate figures (K, P, M), measured at `cpu` (K,), at `seconds`."""
    after = int(np.searchsorted(cpu, seconds))
    if after == 0:
        first: Floats = figures[0]
        return first
    share = (seconds - cpu[after - 1]) / (cpu[after] - cpu[after - 1])
    between: Floats = (1 - share) * figures[after - 1] + share * figures[after]
    return between


def _estimate(figure: Callable[[Callable[[Floats], Floats]], Floats], shape: tuple[int, ...]) -> Estimate:
    """Estimate a figure of means over seeds and prompts; `figure` gets the function that draws such means."""
    random = np.random.default_rng(0)
    seeds, prompts = shape
    by_seed = random.multinomial(seeds, [1 / seeds] * seeds, RESAMPLES) / seeds
    by_prompt = random.multinomial(prompts, [1 / prompts] * prompts, RESAMPLES) / prompts

    def drawn(values: Floats) -> Floats:
        means: Floats = np.einsum("rs,sp,rp->r", by_seed, values, by_prompt, optimize=True)
        return means

    low, high = np.nanquantile(figure(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value = figure(lambda values: np.asarray(values.mean()))
    return Estimate(float(value), float(low), float(high))


def _reference(curves: Sequence[Curve]) -> Curve:
    for curve in curves:
        if curve.method == REFERENCE:
            return curve
    raise SystemExit(f"the rows have no method {REFERENCE!r}, with which the others are compared")


def _beside(found: Floats, compared: Floats | None) -> str:
    """Return the style gained minus the reference method's, over the seeds that both have."""
    if compared is None:
        return ""
    number, seeds = METRICS.index(STYLE), min(len(found), len(compared))
    return str(difference(found[:seeds, :, number], compared[:seeds, :, number]))


def _cell(metric: str, estimate: Estimate) -> str:
    if metric == DIVERSITY:
        return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
    return str(estimate)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--step", type=int, default=30, help="the step of the first table")
    parser.add_argument("--write", type=Path, help="the directory of results.md and of the charts")
    options = parser.parse_args()
    pairs = read_curves(options.rows)
    lines = list(sections(pairs, options.step))
    if not options.write:
        print("\n".join(lines))
        return
    for pair, curves in pairs.items():
        (ROOT / options.write / f"compare_{pair}.svg").write_text(draw_curves(curves, pair), encoding="utf-8")
    write_section(lines, ROOT / options.write / "results.md")


if __name__ == "__main__":
    main()
