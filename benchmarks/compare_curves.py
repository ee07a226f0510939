"""The measurements of a comparison of methods as curves, and estimates of how two of them differ."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from compare import METRICS
from contenders import BASE, REFERENCE
from method_costs import Costs
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
STYLE, SUBJECT, DIVERSITY = "judge_wanted", "judge_top1", "diversity"
# a method's gain counts up to the last checkpoint before it loses more of the subject than this
SUBJECT_KEPT: Final = -0.05
# the gain of a cheaper method is equal if it is not lower than the reference method's by this much
MARGIN: Final = 0.03
# with fewer, the interval hardly contains what differs between seeds
SEEDS_NEEDED: Final = 5


@dataclass(frozen=True)
class Curve:
    """The measurements of one method with one pair of control words.

    seeds: the S training seeds; steps: (K,); cpu: CPU seconds of training up to each step, (K,); figures: (S, K, P, M) by
    seed, step, prompt and metric of `METRICS`; base: those of the base, (S, P, M).
    """

    method: str
    seeds: tuple[int, ...]
    steps: NDArray[np.int64]
    cpu: Floats
    figures: Floats
    base: Floats

    def at_step(self, step: int) -> Floats | None:
        """Return the figures at a step, (S, P, M), or None if it was not measured."""
        found = np.flatnonzero(self.steps == step)
        return self.figures[:, found[0]] if len(found) else None

    def seconds_at(self, step: int) -> float:
        """Return the CPU seconds up to a step that was measured."""
        return float(self.cpu[np.flatnonzero(self.steps == step)[0]])

    def at_seconds(self, seconds: float) -> Floats | None:
        """Return the figures after so many CPU seconds, (S, P, M); None if training was shorter.

        Between two measurements a figure is interpolated, also between the base and the first one.
        """
        if seconds > self.cpu[-1]:
            return None
        cpu = np.concatenate([[0.0], self.cpu])
        figures = np.concatenate([self.base[:, None], self.figures], 1)
        return np.stack([_between(own, seconds, cpu) for own in figures])


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it with a sign and three digits."""
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class Comparison:
    """The style gained minus the reference method's, and over how many seeds."""

    difference: Estimate
    seeds: int

    @property
    def not_inferior(self) -> bool:
        """Whether the interval ends above -`MARGIN` with enough seeds: the gain is equal, or higher."""
        return self.seeds >= SEEDS_NEEDED and self.difference.low > -MARGIN

    @property
    def verdict(self) -> str:
        """Whether the gain is shown to be equal, in the words of the table."""
        if self.seeds < SEEDS_NEEDED:
            return f"needs {SEEDS_NEEDED} seeds"
        return "yes" if self.not_inferior else "not shown"


def read_curves(path: Path, costs: Costs) -> dict[str, list[Curve]]:
    """Read the rows; return the curves of each pair of control words, in the order of the file.

    Raises:
        SystemExit: there is no such file.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise SystemExit(f"{path} does not exist: run 'make compare', or name the rows with --rows")
    table = pq.read_table(path).to_pandas()
    return {str(pair): list(_curves(own, costs)) for pair, own in table.groupby("pair", sort=False)}


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


def non_inferiority(curve: Curve, reference: Curve, step: int) -> Comparison | None:
    """Compare the style gained after a step with the reference method's, paired by seed and prompt.

    None if one of both was not measured at this step, or no seed is common to both.
    """
    found, compared = curve.at_step(step), reference.at_step(step)
    if found is None or compared is None or not set(curve.seeds) & set(reference.seeds):
        return None
    return style_beside(curve, found, reference, compared)


def style_beside(curve: Curve, found: Floats, reference: Curve, compared: Floats) -> Comparison:
    """Compare the style of figures (S, P, M) of two curves over the seeds that both have."""
    number, seeds = METRICS.index(STYLE), [seed for seed in curve.seeds if seed in reference.seeds]
    ours = found[[curve.seeds.index(seed) for seed in seeds], :, number]
    theirs = compared[[reference.seeds.index(seed) for seed in seeds], :, number]
    return Comparison(difference(ours, theirs), len(seeds))


def last_step_with_subject(curve: Curve) -> int | None:
    """Return the last step up to which the mean of the subject's top-1 accuracy never fell more than `SUBJECT_KEPT`."""
    number, kept = METRICS.index(SUBJECT), None
    for place, step in enumerate(curve.steps):
        lost = (curve.figures[:, place, :, number] - curve.base[..., number]).mean()
        if lost < SUBJECT_KEPT:
            break
        kept = int(step)
    return kept


def reference_of(curves: Sequence[Curve]) -> Curve:
    """Return the curve of the reference method. Raises `SystemExit` if there is none."""
    for curve in curves:
        if curve.method == REFERENCE:
            return curve
    raise SystemExit(f"the rows have no method {REFERENCE!r}, with which the others are compared")


def _curves(rows: Any, costs: Costs) -> Iterator[Curve]:
    by_method = {str(method): own for method, own in rows.groupby("method", sort=False)}
    base = by_method.pop(BASE)
    for method, own in by_method.items():
        seeds, steps = sorted(own["seed"].unique()), sorted(own["step"].unique())
        ordered = own.sort_values(["seed", "step", "prompt"])
        of_base = base[base["seed"].isin(seeds)].sort_values(["seed", "prompt"])
        yield Curve(
            method,
            tuple(int(seed) for seed in seeds),
            np.array(steps, dtype=np.int64),
            costs.seconds(method) * np.array(steps, dtype=np.float64),
            ordered[list(METRICS)].to_numpy(np.float64).reshape(len(seeds), len(steps), -1, len(METRICS)),
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
