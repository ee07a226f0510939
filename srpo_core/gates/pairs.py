"""The evaluation as pairs: every model's image of the same prompt from the same seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from srpo_core.artifacts import ALIGNED, BASE, CHAMPION, MODELS
from srpo_core.errors import ArtifactError
from srpo_core.prompts import normal_form

COLUMNS: Final = ("model", "prompt", "style", "seed", "metric", "value")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """P pairs over N prompts.

    prompts, styles: (N,) in the order of the evaluation, each prompt in the spelling that comes first, because
    spellings of one prompt are not independent evidence; prompt_index: (P,) indices into them; seeds: (P,);
    base, aligned, champion: metric -> (P,); champion is None if there is none.
    """

    prompts: tuple[str, ...]
    styles: tuple[str, ...]
    prompt_index: Integers
    seeds: Integers
    base: Mapping[str, Floats]
    aligned: Mapping[str, Floats]
    champion: Mapping[str, Floats] | None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics in the order of the table."""
        return list(self.aligned)

    def by_prompt(self, figures: Floats) -> Floats:
        """Average figures (P,) over the seeds of each prompt, (N,)."""
        sums = np.bincount(self.prompt_index, weights=figures, minlength=len(self.prompts))
        return sums / np.bincount(self.prompt_index, minlength=len(self.prompts))


def count_wins(ours: Floats, theirs: Floats, *, tie: float) -> tuple[int, int, int]:
    """Count the pairs that `ours` wins, loses and ties; figures that differ by at most `tie` are a tie."""
    ties = np.abs(ours - theirs) <= tie
    return int(np.sum((ours > theirs) & ~ties)), int(np.sum((ours < theirs) & ~ties)), int(np.sum(ties))


def pair_up(table: Any, source: Path) -> Pairs:
    """Pair an evaluation (a `pyarrow.Table`, one row per image and metric; see stage evaluate).

    A missing figure becomes NaN.

    Raises:
        ArtifactError: a column is missing or has a wrong type, a model is unknown, a prompt has two styles, or a figure
            has no partner or is repeated.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise damaged(source, f"has no column {', '.join(missing)}")
    _require_types(table, source)
    frame = table.select(list(COLUMNS)).to_pandas()
    unknown = sorted(set(frame["model"]) - set(MODELS))
    if unknown:
        raise damaged(source, f"has rows of model {unknown[0]!r}, known are {', '.join(MODELS)}")
    frame["same"] = frame["prompt"].map({prompt: normal_form(prompt) for prompt in frame["prompt"].unique()})
    of_base = frame[frame["model"] == BASE]
    places = of_base[["prompt", "seed"]].drop_duplicates()
    prompts = of_base.drop_duplicates("same")
    if places.empty:
        raise damaged(source, "has 0 rows of the base")
    styles = frame.drop_duplicates(["same", "style"])
    if (repeated := styles["same"].duplicated()).any():
        raise damaged(source, f"has two styles of prompt {styles['prompt'][repeated].iloc[0]!r}")
    index = {same: number for number, same in enumerate(prompts["same"])}
    keys = list(zip(places["prompt"], places["seed"], strict=True))
    figures = {model: _figures(rows, keys, source, model) for model, rows in frame.groupby("model")}
    if ALIGNED not in figures:
        raise damaged(source, "has 0 rows of the aligned model")
    for model, found in figures.items():
        if found.keys() != figures[BASE].keys():
            odd = sorted(found.keys() ^ figures[BASE].keys())
            raise damaged(source, f"has metric {odd[0]} of only one of base and {model}")
    order = list(dict.fromkeys(of_base["metric"]))
    ordered = {model: {name: found[name] for name in order} for model, found in figures.items()}
    return Pairs(
        prompts=tuple(prompts["prompt"]),
        styles=tuple(prompts["style"]),
        prompt_index=np.array([index[normal_form(prompt)] for prompt, _ in keys], dtype=np.int64),
        seeds=np.array([seed for _, seed in keys], dtype=np.int64),
        base=ordered[BASE],
        aligned=ordered[ALIGNED],
        champion=ordered.get(CHAMPION),
    )


def _figures(rows: Any, keys: list[tuple[str, int]], source: Path, model: str) -> dict[str, Floats]:
    """Metric -> figures in the order of `keys`; every metric must have each key exactly once."""
    import pandas as pd

    wanted = pd.MultiIndex.from_tuples(keys)
    found: dict[str, Floats] = {}
    for metric, own in rows.groupby("metric"):
        at = pd.MultiIndex.from_arrays([own["prompt"], own["seed"]])
        where = f"of model {model}, metric {metric}"
        if at.has_duplicates:
            prompt, seed = at[at.duplicated()][0]
            raise damaged(source, f"repeats prompt {prompt!r}, seed {seed} {where}")
        alone = wanted.symmetric_difference(at)
        if len(alone):
            prompt, seed = alone[0]
            raise damaged(
                source,
                f"has {len(alone)} rows {where} without a partner, for instance prompt {prompt!r} seed {seed}",
            )
        column = own["value"].to_numpy(dtype=np.float64, na_value=np.nan)
        found[str(metric)] = column[at.get_indexer(wanted)]
    return found


def _require_types(table: Any, source: Path) -> None:
    """Require that prompts, models and metrics are texts, seeds are whole numbers, and figures are numbers.

    Raises:
        ArtifactError: a column has another type, or a row has no model, prompt, style, seed or metric.
    """
    import pyarrow.types as kinds

    checks = {"seed": (kinds.is_integer, "whole numbers"), "value": (kinds.is_floating, "numbers")}
    for name in COLUMNS:
        column = table.column(name)
        kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
        fits, noun = checks.get(
            name, (lambda one: kinds.is_string(one) or kinds.is_large_string(one), "texts")
        )
        if not fits(kind):
            raise damaged(source, f"has {column.type} in the column {name}, which must hold {noun}")
        if name != "value" and column.null_count:
            raise damaged(source, f"has {column.null_count} rows without {name}")


def damaged(source: Path, fault: str) -> ArtifactError:
    """Make the error of an evaluation that cannot be used, with the next step."""
    return ArtifactError(f"{source} {fault}: run 'dvc repro --force -s evaluate' to write it again")
