"""The page: what the stages left, brought together and rendered by the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from srpo_core.config import ControlWords
from srpo_core.gates.pairs import Floats, Pairs
from srpo_core.report.charts import Mark, Series, interval_bar, line_chart
from srpo_core.report.curves import checkpoint_panels
from srpo_core.report.grid import Tile, data_uri
from srpo_core.report.notes import METRIC_NOTES
from srpo_core.report.numbers import finite, percent, plain, signed

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Evidence:
    """All that the page shows; mappings as the stages wrote them (see the stages select, gate, check_reward)."""

    control_words: ControlWords
    decision: Mapping[str, Any]
    selection: Mapping[str, Any]
    agreement: Mapping[str, Any]
    training: Mapping[str, Sequence[Series]]
    pairs: Pairs
    tiles: Sequence[Tile]


def render_page(evidence: Evidence) -> str:
    """One HTML page that needs nothing but itself; the same evidence gives the same text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("srpo_core.report", package_path=""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "signed": signed, "percent": percent, "capital": _capital}
    return environment.get_template(TEMPLATE).render(
        words=evidence.control_words,
        decision=evidence.decision,
        selection=evidence.selection,
        agreement=evidence.agreement,
        bars=[interval_bar(rule) for rule in evidence.decision["rules"]],
        tiles=_inlined(evidence.tiles),
        seeds=[shot.seed for shot in evidence.tiles[0].shots],
        pairs=evidence.pairs,
        changes=metric_changes(evidence.pairs),
        checkpoints=_checkpoint_charts(evidence),
        training=_training_charts(evidence),
    )


def metric_changes(pairs: Pairs) -> list[dict[str, Any]]:
    """Before, after and difference of every metric, over all prompts and by benchmark list."""
    lists = sorted(set(pairs.styles))
    changes = []
    for name in pairs.metrics:
        before, after = pairs.by_prompt(pairs.base[name]), pairs.by_prompt(pairs.aligned[name])
        styles = np.array(pairs.styles)
        by_list = {one: _mean(after[styles == one] - before[styles == one]) for one in lists}
        changes.append(
            {
                "name": name,
                "note": METRIC_NOTES.get(name, ""),
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
    panels = checkpoint_panels(selection["curve"], evidence.pairs.metrics)
    return [_panel(name, lines, "checkpoint after step", mark) for name, lines in panels.items()]


def _training_charts(evidence: Evidence) -> list[dict[str, Any]]:
    return [_panel(name, lines, "optimizer step", None) for name, lines in evidence.training.items()]


def _panel(name: str, lines: Sequence[Series], x_label: str, mark: Mark | None) -> dict[str, Any]:
    svg: Markup = line_chart(lines, label=f"{name} by {x_label}", x_label=x_label, mark=mark)
    names = [line.name for line in lines] if len(lines) > 1 else []
    notes = [METRIC_NOTES.get(name, "")] if not names else []
    return {"name": name, "note": "".join(notes), "names": names, "svg": svg}


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


def _capital(text: str) -> str:
    """Begin with a capital letter, unless the first word is a name that is written small."""
    first = text.partition(" ")[0]
    return text if "_" in first or first.endswith(":") else text[:1].upper() + text[1:]
