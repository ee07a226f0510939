"""Measure what alignment costs: style gained against subjects and diversity kept, on the tiny profile.

Every run trains this project's `Worker` from the same base, prompts and noise; the gate's judge classifies style and
subject of images of subjects that are not in the training prompts. Prints one JSON line per method and step: means,
and for each figure the interval (95 %, paired bootstrap over subjects) of its difference from the base. `--chart
FILE.svg` draws the points with those intervals.

    python benchmarks/trade_off.py --steps 30 --seeds 2 --chart assets/tiny/trade_off.svg > .srpo/trade_off.jsonl
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from trial import METRICS, absolute, evaluation_images, job_of, measured, train_prompts

from srpo_core.config import ControlWords, Settings, load_settings
from srpo_core.gates.bootstrap import Sample, percentile_interval, resampled_means
from srpo_core.generation.images import MeasuredImage, mean_figures
from srpo_core.training.steps import checkpoint_steps
from srpo_core.training.worker import Worker

ROOT: Final = Path(__file__).resolve().parents[1]
PAIRS: Final = (("Ink", "3D"), ("3D", "Flat"))
PANEL: Final = 320
RESAMPLES: Final = 10_000
COLOURS: Final = ("#1b6ca8", "#7fb3d5", "#c0392b", "#27ae60", "#8e44ad")
CHARTED_FIGURES: Final = (("judge_top1", "subject named first"), ("diversity", "diversity"))


@dataclass(frozen=True)
class Run:
    """One curve: a method's patch of the settings `train`."""

    name: str
    patch: Mapping[str, Any]


RUNS: Final = (
    Run("SRPO", {"method": "srpo"}),
    Run("SRPO, the reference's discounts", {"method": "srpo", "discount": (0.1, 0.25)}),
    Run("Direct-Align, wanted word", {"method": "direct_align", "reward_text": "wanted"}),
    Run("DRaFT-LV, wanted word", {"method": "draft_lv", "reward_text": "wanted"}),
    Run("ReFL, wanted word", {"method": "refl", "reward_text": "wanted"}),
)


def patched(settings: Settings, run: Run, pair: tuple[str, str], steps: int, every: int) -> Settings:
    """Return the settings of one curve."""
    patch = dict(run.patch)
    discount = patch.pop("discount", settings.train.direct_align.discount_denoise)
    align = settings.train.direct_align.model_copy(update={"discount_denoise": discount})
    train = settings.train.model_copy(
        update={**patch, "steps": steps, "checkpoint_every": every, "direct_align": align}
    )
    words = ControlWords.of(wanted=[pair[0]], unwanted=[pair[1]])
    return settings.model_copy(update={"train": train, "control_words": words})


def points(settings: Settings, state: Path, seeds: int) -> Iterator[dict[str, float]]:
    """Train in the working directory; yield the figures of the base and at each of `checkpoint_steps`."""
    images = evaluation_images(settings, seeds)
    worker = Worker(job_of(settings, state), rank=0, world=1, device=torch.device("cpu"))
    base = measured(settings, worker.model, images, 0)
    yield {"step": 0.0, **mean_figures(base, METRICS)}
    for step in range(1, settings.train.steps + 1):
        worker.step(step)
        if step in checkpoint_steps(settings.train):
            generated = measured(settings, worker.model, images, step)
            yield {"step": float(step), **mean_figures(generated, METRICS), **intervals(base, generated)}


def intervals(base: Sequence[MeasuredImage], generated: Sequence[MeasuredImage]) -> dict[str, float]:
    """Return the 95 % interval of each figure's mean difference from the base, as `<figure>_low` and `_high`."""
    by_prompt = prompt_means(generated) - prompt_means(base)
    strata = ["all"] * len(by_prompt)
    draws = resampled_means(by_prompt, strata, resamples=RESAMPLES, generator=np.random.default_rng(0))
    sample = Sample(num_prompts=len(by_prompt), num_strata=1)
    ends = {}
    for column, name in enumerate(METRICS):
        low, high = percentile_interval(draws[:, column], sample, confidence=0.95)
        ends |= {f"{name}_low": low, f"{name}_high": high}
    return ends


def prompt_means(images: Sequence[MeasuredImage]) -> NDArray[np.float64]:
    """Return the mean figures of each prompt over its seeds, (prompts, figures)."""
    figures: dict[str, list[list[float]]] = {}
    for image in images:
        figures.setdefault(image.prompt, []).append([image.figures[name] for name in METRICS])
    return np.array([np.mean(rows, axis=0) for rows in figures.values()])


def write_chart(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Style against subject accuracy and diversity: a panel per pair and figure, a line per method, as SVG."""
    pairs = list(dict.fromkeys(str(row["pair"]) for row in rows))
    names = list(dict.fromkeys(str(row["run"]) for row in rows))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * PANEL}" height="{len(pairs) * PANEL + 24 * len(names)}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for line, pair in enumerate(pairs):
        for column, (metric, title) in enumerate(CHARTED_FIGURES):
            parts.append(f'<g transform="translate({column * PANEL},{line * PANEL})">{axes(pair, title)}')
            for colour, name in zip(COLOURS, names, strict=False):
                chosen = [row for row in rows if (row["pair"], row["run"]) == (pair, name)]
                parts.append(curve([(row["judge_wanted"], row[metric]) for row in chosen], colour))
                parts += [whisker(row, chosen[0][metric], metric, colour) for row in chosen[1:]]
            parts.append("</g>")
    for place, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        y = len(pairs) * PANEL + 16 + 22 * place
        parts.append(
            f'<circle cx="20" cy="{y - 4}" r="5" fill="{colour}"/><text x="32" y="{y}">{name}</text>'
        )
    path.write_text("".join([*parts, "</svg>\n"]), encoding="utf-8")


def axes(pair: str, title: str) -> str:
    """Return frame, ticks from 0 to 1 and titles of one panel."""
    ticks = "".join(
        f'<text x="{x_of(value)}" y="{PANEL - 34}" text-anchor="middle">{value}</text>'
        f'<text x="{x_of(0) - 8}" y="{y_of(value) + 4}" text-anchor="end">{value}</text>'
        f'<line x1="{x_of(0)}" x2="{x_of(1)}" y1="{y_of(value)}" y2="{y_of(value)}" stroke="#ddd"/>'
        for value in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'{ticks}<text x="{x_of(0.5)}" y="16" text-anchor="middle">{pair}: {title}</text>'
        f'<text x="{x_of(0.5)}" y="{PANEL - 18}" text-anchor="middle">wanted style, the gate\'s judge</text>'
    )


def curve(points: Sequence[tuple[float, float]], colour: str) -> str:
    """Return a line through points from 0 to 1 in the order of steps, with a dot for each."""
    path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/>' for x, y in points)
    return f'<g fill="{colour}"><polyline points="{path}" fill="none" stroke="{colour}"/>{dots}</g>'


def whisker(row: Mapping[str, Any], base: float, metric: str, colour: str) -> str:
    """Return a vertical line for the interval of a point: the base's figure plus the interval of the difference."""
    x = f"{x_of(row['judge_wanted']):.1f}"
    low, high = (y_of(min(1.0, max(0.0, base + row[f"{metric}_{end}"]))) for end in ("low", "high"))
    return f'<line x1="{x}" x2="{x}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-opacity="0.5"/>'


def x_of(value: float) -> float:
    """Return the x coordinate of a value from 0 to 1."""
    return 44 + value * (PANEL - 64)


def y_of(value: float) -> float:
    """Return the y coordinate of a value from 0 to 1."""
    return PANEL - 50 - value * (PANEL - 80)


def main() -> None:
    """Run every method on every pair of control words."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="images of each of the 40 subjects")
    parser.add_argument("--chart", type=Path, help="an SVG file to draw")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = absolute(load_settings(ROOT / "params.yaml"))
    chart = arguments.chart.resolve() if arguments.chart else None
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        train_prompts(settings)
        for pair in PAIRS:
            for run in RUNS:
                changed = patched(settings, run, pair, arguments.steps, arguments.every)
                for point in points(changed, Path(place), arguments.seeds):
                    rows.append({"pair": f"{pair[0]} over {pair[1]}", "run": run.name, **point})
                    print(json.dumps(rows[-1]), flush=True)
    if chart:
        write_chart(rows, chart)


if __name__ == "__main__":
    main()
