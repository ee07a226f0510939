"""Choosing among checkpoints by their figures on validation prompts: stage select and the release compute it alike."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.config import SelectSettings
from srpo_core.errors import ArtifactError, DivergenceError
from srpo_core.prompts import balanced_order
from srpo_core.selection.halving import (
    BASE_STEP,
    ROUNDING,
    Compared,
    Figures,
    Means,
    Round,
    compare_in_rounds,
    least_slack,
    means_of,
    rank,
    round_sizes,
)


@dataclass(frozen=True)
class Choice:
    """The chosen step, the steps within every margin, and the reason in one sentence."""

    step: int
    admissible: list[int]
    reason: str


def choose(means: Mapping[int, Means], select: SelectSettings) -> Choice:
    """Choose among the steps of `means`, where step 0 is the base.

    A step is admissible if its mean of every metric in `select.keep` lies at most that margin below
    the base's. The admissible step with the largest `select.maximize` is chosen, the earlier one
    on a tie. If none is admissible, the step whose worst breach is smallest is chosen for the report; the
    empty list `admissible` then makes the gate refuse it.

    Raises:
        DivergenceError: a mean is NaN or infinite.
    """
    steps = sorted(step for step in means if step != BASE_STEP)
    _require_finite(means)
    base = means[BASE_STEP]
    admissible = [step for step in steps if least_slack(means[step], base, select.keep) >= -ROUNDING]
    step = max(steps, key=lambda step: rank(means[step], base, select))
    gain = _change(select.maximize, base, means[step])
    kept = "; ".join(
        f"{_change(name, base, means[step])}, where a change of {margin:+.3f} is allowed"
        for name, margin in sorted(select.keep.items())
    )
    if admissible:
        return Choice(
            step,
            admissible,
            f"step {step} has the best {select.maximize} of the {len(admissible)} of {len(steps)} checkpoints "
            f"that stay within every margin: {gain}" + (f" ({kept})" if kept else ""),
        )
    return Choice(
        step,
        [],
        f"all {len(steps)} checkpoints lose more than a margin of select.keep allows; step {step} "
        f"loses least and is shown instead: {gain} ({kept})",
    )


def rounds_of(
    prompts: Sequence[str], styles: Sequence[str], seed: int, select: SelectSettings
) -> list[list[int]]:
    """Return the prompts that each round adds, as ascending indices into `prompts`; all of them without halving."""
    order = balanced_order(prompts, styles, seed)
    sizes = [0, *round_sizes(len(prompts), select.halving)]
    return [sorted(order[start:stop]) for start, stop in pairwise(sizes)]


def selection_of(compared: Compared, select: SelectSettings) -> dict[str, Any]:
    """Choose among the checkpoints that were compared on all prompts; the result is the content of `selection.json`."""
    means = {step: means_of(own) for step, own in compared.figures.items()}
    _require_finite(means)
    choice = choose({step: means[step] for step in (BASE_STEP, *compared.finalists)}, select)
    dropped = [one for one in compared.rounds if one.dropped]
    return {
        "step": choice.step,
        "admissible": choice.admissible,
        "reason": "; ".join([choice.reason, *map(_why_dropped, dropped)]),
        "checkpoint": str(artifacts.step_directory(choice.step)),
        "curve": [{"step": step, **own} for step, own in means.items()],
        "rounds": [asdict(one) for one in compared.rounds],
        "maximize": select.maximize,
        "keep": dict(select.keep),
    }


def recomputed_selection(
    table: Any,
    prompts: Sequence[str],
    styles: Sequence[str],
    steps: Sequence[int],
    *,
    seed: int,
    select: SelectSettings,
    source: Path = artifacts.SELECT_SCORES,
) -> dict[str, Any]:
    """Compute `selection.json` anew from the scores of stage select (a `pyarrow.Table`, one row per image).

    prompts, styles: the validation prompts; steps: of all saved checkpoints.

    Raises:
        ArtifactError: the scores lack an image that a round compares, or have one that no round compares.
    """
    rounds = rounds_of(prompts, styles, seed, select)
    metrics = sorted({select.maximize, *select.keep})
    wanted = {"step", "prompt", "seed", *metrics}
    if missing := sorted(wanted - set(table.column_names)):
        raise _damaged(source, f"has no column {', '.join(missing)}")
    rows = {(row["step"], row["prompt"], row["seed"]): row for row in table.to_pylist()}
    if len(rows) < table.num_rows:
        raise _damaged(source, f"repeats {table.num_rows - len(rows)} images")
    used = set()

    def measured(step: int, number: int) -> Figures:
        keys = [(step, prompts[index], k) for index in rounds[number] for k in range(select.seeds_per_prompt)]
        for key in keys:
            if key not in rows:
                raise _damaged(source, f"lacks step {key[0]}, prompt {key[1]!r}, seed {key[2]}")
        used.update(keys)
        return {name: [rows[key][name] for key in keys] for name in metrics}

    sizes = round_sizes(len(prompts), select.halving)
    compared = compare_in_rounds(steps, sizes, measured, select)
    if odd := sorted(rows.keys() - used):
        step, prompt, k = odd[0]
        raise _damaged(
            source,
            f"has {len(odd)} images that no round compares, first step {step}, prompt {prompt!r}, seed {k}",
        )
    return selection_of(compared, select)


def _why_dropped(one: Round) -> str:
    steps = " and ".join(f"step {step}" for step in one.dropped)
    return f"{steps} had no images of more than {one.num_prompts} prompts, being clearly worse by then"


def _require_finite(means: Mapping[int, Means]) -> None:
    for step, figures in means.items():
        for name, value in figures.items():
            if not isfinite(value):
                raise DivergenceError(
                    f"{name} of {'the base' if step == BASE_STEP else f'step {step}'} is {value}: nothing can be "
                    "chosen by it; check the weights of reward and judge"
                )


def _change(metric: str, base: Means, means: Means) -> str:
    return f"{metric} {base[metric]:.3f} → {means[metric]:.3f}"


def _damaged(source: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"{source} {fault}: run 'dvc repro --force -s select' to write it again")
