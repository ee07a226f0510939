"""The evaluation as pairs: the base's picture and the aligned model's, same prompt, same seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srpo_core.errors import ArtifactError

BASE = "base"
ALIGNED = "aligned"
KEYS = ("model", "prompt", "style", "seed", "png")

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """P pairs over N prompts.

    prompts, styles: (N,) in the order of the evaluation; prompt_index: (P,) into them; seeds: (P,);
    base, aligned: metric -> (P,); base_rows, aligned_rows: (P,) rows of the evaluation's table.
    """

    prompts: tuple[str, ...]
    styles: tuple[str, ...]
    prompt_index: Integers
    seeds: Integers
    base: Mapping[str, Floats]
    aligned: Mapping[str, Floats]
    base_rows: Integers
    aligned_rows: Integers

    @property
    def metrics(self) -> list[str]:
        """Names of the measured columns, in the order of the table."""
        return list(self.aligned)

    def by_prompt(self, figures: Floats) -> Floats:
        """Average figures (P,) over the seeds of each prompt, (N,)."""
        sums = np.bincount(self.prompt_index, weights=figures, minlength=len(self.prompts))
        return sums / np.bincount(self.prompt_index, minlength=len(self.prompts))


def pair_up(table: Any, source: Path) -> Pairs:
    """Pair the rows of an evaluation table (a `pyarrow.Table`; see stage evaluate) by prompt and seed.

    Every numeric column beside the keys is a metric; a missing figure becomes NaN.

    Raises:
        ArtifactError: a key column is missing, a model is unknown, or a row lacks its partner or is doubled.
    """
    missing = [key for key in ("model", "prompt", "style", "seed") if key not in table.column_names]
    if missing:
        raise _broken(source, f"has no column {', '.join(missing)}")
    rows = _rows_by_model(table, source)
    keys = list(rows[BASE])
    unpaired = sorted(rows[BASE].keys() ^ rows[ALIGNED].keys())
    if unpaired or not keys:
        example = f", for instance prompt {unpaired[0][0]!r} seed {unpaired[0][1]}" if unpaired else ""
        raise _broken(source, f"has {len(keys)} rows of the base, {len(unpaired)} without a partner{example}")
    base_rows = np.array([rows[BASE][key] for key in keys], dtype=np.int64)
    aligned_rows = np.array([rows[ALIGNED][key] for key in keys], dtype=np.int64)
    figures = _metric_columns(table)
    styles = table["style"].to_pylist()
    first_rows = {prompt: row for (prompt, _), row in reversed(rows[BASE].items())}
    prompts = tuple(dict.fromkeys(prompt for prompt, _ in keys))
    position = {prompt: index for index, prompt in enumerate(prompts)}
    return Pairs(
        prompts=prompts,
        styles=tuple(styles[first_rows[prompt]] for prompt in prompts),
        prompt_index=np.array([position[prompt] for prompt, _ in keys], dtype=np.int64),
        seeds=np.array([seed for _, seed in keys], dtype=np.int64),
        base={name: column[base_rows] for name, column in figures.items()},
        aligned={name: column[aligned_rows] for name, column in figures.items()},
        base_rows=base_rows,
        aligned_rows=aligned_rows,
    )


def _rows_by_model(table: Any, source: Path) -> dict[str, dict[tuple[str, int], int]]:
    rows: dict[str, dict[tuple[str, int], int]] = {BASE: {}, ALIGNED: {}}
    columns = (table[key].to_pylist() for key in ("model", "prompt", "seed"))
    for row, (model, prompt, seed) in enumerate(zip(*columns, strict=True)):
        if model not in rows:
            raise _broken(source, f"row {row} is of model {model!r}, known are {BASE} and {ALIGNED}")
        if (prompt, seed) in rows[model]:
            raise _broken(source, f"row {row} repeats model {model}, prompt {prompt!r}, seed {seed}")
        rows[model][prompt, seed] = row
    return rows


def _metric_columns(table: Any) -> dict[str, Floats]:
    from pyarrow import types

    return {
        field.name: np.array(table[field.name].to_numpy(), dtype=np.float64)
        for field in table.schema
        if field.name not in KEYS
        and (types.is_floating(field.type) or types.is_integer(field.type) or types.is_boolean(field.type))
    }


def _broken(source: Path, fault: str) -> ArtifactError:
    return ArtifactError(f"{source} {fault}: run 'dvc repro --force -s evaluate' to write it anew")
