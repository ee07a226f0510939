"""The page: the outputs of the stages, prepared for the template."""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from srpo_core.config import ControlWords, GateRule
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.pairs import Floats, Pairs
from srpo_core.gates.people import first_automatic
from srpo_core.gates.rules import BY_PROOF_OF_BREACH
from srpo_core.report.alarm import alarm_figures, alarm_panel
from srpo_core.report.charts import Mark, Series, interval_bar, line_chart
from srpo_core.report.costs import COST_MARK
from srpo_core.report.curves import checkpoint_panels
from srpo_core.report.data_rules import broken_rules
from srpo_core.report.formats import FORMATS_MARK
from srpo_core.report.grid import Tile, data_uri, tiles_of
from srpo_core.report.inputs import Difference
from srpo_core.report.notes import TRAINING_NOTES
from srpo_core.report.numbers import MINUS, MISSING, finite
from srpo_core.report.templates import render

TEMPLATE = "page.html.j2"
SCRIPT = "page.js"
EXTREMES = 4
# by the side of a rule: what is better, in words, and the worth of a change, which is higher for a better one
BETTER: Final[Mapping[str, tuple[str, Callable[[Floats], Floats]]]] = MappingProxyType(
    {
        "at_least": ("higher is better", lambda change: change),
        "at_most": ("lower is better", lambda change: -change),
        "within": ("no change is best", lambda change: -np.abs(change)),
    }
)


@dataclass(frozen=True)
class Evidence:
    """Everything that the page shows. Mappings are outputs of stages (see select, gate, check_reward)."""

    control_words: ControlWords
    decision: Mapping[str, Any]
    selection: Mapping[str, Any]
    agreement: Mapping[str, Any]
    summary: Mapping[str, Any]
    training: Mapping[str, Sequence[Series]]
    outcome: Mapping[str, Any]
    pairs: Pairs
    tiles: Sequence[Tile]
    extremes: "Extremes"
    data: Mapping[str, str]
    records: Mapping[str, Any]
    preset: str
    differences: Sequence[Difference]
    metric_notes: Mapping[str, str]


@dataclass(frozen=True)
class Extremes:
    """The prompts whose metric changed most for the better and for the worse, with the changes.

    better: what is better by the rule of the metric, in words.
    """

    metric: str
    better: str
    best: Sequence[tuple[Tile, float]]
    worst: Sequence[tuple[Tile, float]]


def render_page(evidence: Evidence) -> str:
    """Render a self-contained HTML page; the same evidence gives the same text."""
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    rules = [rule | rule_texts(rule) for rule in evidence.decision["rules"]]
    return render(
        TEMPLATE,
        words=evidence.control_words,
        decision=evidence.decision,
        first_metric=first_automatic(evidence.decision)["metric"],
        selection=evidence.selection,
        agreement=evidence.agreement,
        script=Markup(script),  # noqa: S704  # our own file
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        proofs=[rule for rule in rules if rule["severity"] not in BY_PROOF_OF_BREACH],
        signs=[rule for rule in rules if rule["severity"] in BY_PROOF_OF_BREACH],
        summary=evidence.summary,
        tiles=_inlined(evidence.tiles),
        seeds=[shot.seed for shot in evidence.tiles[0].shots],
        extremes=_inlined_extremes(evidence.extremes),
        data=evidence.data,
        records=evidence.records,
        num_read=sum(evidence.records["read"].values()),
        broken=broken_rules(evidence.records),
        preset=evidence.preset,
        differences=evidence.differences,
        cost_mark=Markup(COST_MARK),  # noqa: S704  # a comment of ours
        formats_mark=Markup(FORMATS_MARK),  # noqa: S704  # a comment of ours
        pairs=evidence.pairs,
        changes=metric_changes(evidence.pairs, evidence.metric_notes),
        checkpoints=_checkpoint_charts(evidence),
        training=_training_charts(evidence),
        outcome=evidence.outcome,
        alarm=alarm_panel(evidence.outcome["alarm"]),
        watched=alarm_figures(evidence.outcome["alarm"]),
        shown=outcome_words(evidence.outcome),
    )


def rule_texts(rule: Mapping[str, Any]) -> dict[str, Any]:
    """The bar of a rule of decision.json, its label, and its figures as texts."""
    comparison = COMPARISONS[rule["compare"]]

    def text(figure: float | None) -> str:
        if figure is None:
            return MISSING
        written = comparison.format(figure)
        if not any(digit in written for digit in "123456789"):
            written = comparison.format(0.0)  # no minus sign before a rounded zero
        return written.replace("-", MINUS)

    keys = ("against", "compare", "margin", "meaning", "metric", "severity", "side", "tie")
    return {
        "bar": interval_bar(rule),
        "label": comparison.label(GateRule(**{key: rule[key] for key in keys})),
        "texts": {key: text(rule[key]) for key in ("value", "low", "high", "margin")},
    }


def outcome_words(outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the control words of training: side, word, and the number of training prompts that contain it."""
    counts = outcome["control_words_in_prompts"]
    return [
        {"side": side, "word": word, "count": count}
        for side in ("wanted", "unwanted")
        for word, count in counts[side].items()
    ]


def find_extremes(pairs: Pairs, source: Path, rule: Mapping[str, Any], count: int = EXTREMES) -> Extremes:
    """Find the `count` best and worst prompts by the change of a rule's metric, each with its first image.

    No prompt is both, so each side has at most half of them. A prompt without a figure is neither.
    """
    metric = rule["metric"]
    change = pairs.by_prompt(pairs.aligned[metric] - pairs.base[metric])
    better, worth = BETTER[rule["side"]]
    by_worth = np.argsort(-worth(change), kind="stable")
    order = by_worth[np.isfinite(change[by_worth])]
    half = len(order) // 2
    best, worst = order[: min(count, len(order) - half)].tolist(), order[::-1][: min(count, half)].tolist()
    tiles = dict(zip([*best, *worst], tiles_of(pairs, source, [*best, *worst], 1), strict=True))
    return Extremes(
        metric,
        better,
        [(tiles[index], float(change[index])) for index in best],
        [(tiles[index], float(change[index])) for index in worst],
    )


def metric_changes(pairs: Pairs, notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Compute before, after and difference of every metric over all prompts, and before and after by benchmark list."""
    lists = sorted(set(pairs.styles))
    changes = []
    for name in pairs.metrics:
        before, after = pairs.by_prompt(pairs.base[name]), pairs.by_prompt(pairs.aligned[name])
        styles = np.array(pairs.styles)
        by_list = {one: (_mean(before[styles == one]), _mean(after[styles == one])) for one in lists}
        changes.append(
            {
                "name": name,
                "note": notes.get(name, ""),
                "before": _mean(before),
                "after": _mean(after),
                "difference": _mean(after - before),
                "by_list": by_list if len(lists) > 1 else {},
            }
        )
    return changes


def _mean(figures: Floats) -> float | None:
    return finite(float(figures.mean()))


def _checkpoint_charts(evidence: Evidence) -> list[dict[str, Any]]:
    selection = evidence.selection
    mark = Mark(float(selection["step"]), f"step {selection['step']}:")
    dropped = [step for one in selection["rounds"] for step in one["dropped"]]
    panels = checkpoint_panels(selection["curve"], evidence.pairs.metrics, dropped)
    notes = evidence.metric_notes
    return [
        _panel(name, lines, notes.get(name, ""), x_label="checkpoint after step", mark=mark)
        for name, lines in panels.items()
    ]


def _training_charts(evidence: Evidence) -> list[dict[str, Any]]:
    notes = {**evidence.metric_notes, **TRAINING_NOTES}
    return [
        _panel(name, lines, notes.get(name, ""), x_label="optimizer step")
        for name, lines in evidence.training.items()
    ]


def _panel(
    name: str, lines: Sequence[Series], note: str, *, x_label: str, mark: Mark | None = None
) -> dict[str, Any]:
    """A chart for the template; several lines need a legend instead of the note."""
    svg: Markup = line_chart(lines, label=f"{name} by {x_label}", x_label=x_label, mark=mark)
    names = [line.name for line in lines] if len(lines) > 1 else []
    return {"name": name, "note": "" if names else note, "names": names, "svg": svg}


def _inlined(tiles: Sequence[Tile]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": tile.prompt,
            "shots": [
                {"seed": shot.seed, "before": data_uri(shot.before), "after": data_uri(shot.after)}
                for shot in tile.shots
            ],
        }
        for tile in tiles
    ]


def _inlined_extremes(extremes: Extremes) -> dict[str, Any]:
    def sides(entries: Sequence[tuple[Tile, float]]) -> list[dict[str, Any]]:
        return [
            {"tile": tile, "change": change}
            for tile, (_, change) in zip(_inlined([t for t, _ in entries]), entries, strict=True)
        ]

    return {
        "metric": extremes.metric,
        "better": extremes.better,
        "best": sides(extremes.best),
        "worst": sides(extremes.worst),
    }
