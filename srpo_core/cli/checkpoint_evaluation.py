"""Any checkpoint against its base and the champion: drawn, measured and held to the gate, outside of the stage graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError
from srpo_core.gates.decision import decide
from srpo_core.gates.pairs import pair_up
from srpo_core.stages.evaluate import evaluate_models, metric_context, models_to_compare

# The gate asks what select found; a checkpoint that was named by hand was not selected.
NAMED_BY_HAND: Final = {"admissible": [0], "reason": "named by hand"}


def evaluate_checkpoint(settings: Settings, checkpoint: Path, target: Path) -> dict[str, Any]:
    """Draw the test prompts by base, checkpoint and champion, measure, and hold the figures to the gate's rules.

    Writes images.parquet, figures.parquet, summary.json and decision.json into `target`; returns the decision.
    The embedded prompts of stage embed are used. A run that was cut off goes on where it was.

    Raises:
        ArtifactError: the checkpoint is no directory of a transformer's weights.
        ConfigError: an unknown metric, or one that these settings do not allow.
        StoreError: the champion of the settings is no whole release.
    """
    if not (checkpoint / "config.json").is_file():
        raise ArtifactError(
            f"{checkpoint} is no checkpoint: give a directory with a transformer's config.json and weights, such as "
            f"{artifacts.step_directory(10)}"
        )
    summary = evaluate_models(
        models_to_compare(checkpoint, settings.champion),
        target,
        seed=settings.seed,
        model=settings.model,
        context=metric_context(settings.reward, settings.judge, settings.control_words, settings.evaluate),
        generate=settings.generate,
        evaluate=settings.evaluate,
        resources=settings.resources,
    )
    artifacts.write_json(
        target / artifacts.EVALUATION_SUMMARY.name,
        {"checkpoint": str(checkpoint), "champion": settings.champion, **summary},
    )
    figures = target / artifacts.FIGURES.name
    pairs = pair_up(artifacts.read_table(figures), figures)
    decision = decide(pairs, NAMED_BY_HAND, seed=settings.seed, gate=settings.gate)
    artifacts.write_json(target / artifacts.DECISION.name, decision)
    return decision


def rule_table(decision: Mapping[str, Any]) -> list[str]:
    """A decision's rules as lines of a table, the head first: figure, interval and its half width, and what was asked.

    The half width of the interval, beside the margin, says whether there were prompts enough to tell.
    """
    rows = [("rule", "verdict", "figure", "interval", "half width", "asked")]
    for rule in decision["rules"]:
        value, low, high = rule["value"], rule["low"], rule["high"]
        ends = ("-", "-") if low is None else (f"{low:+.3f} … {high:+.3f}", f"{(high - low) / 2:.3f}")
        figure = "-" if value is None else f"{value:+.3f}"
        side = rule["side"].replace("_", " ")
        asked = f"{rule['severity']}: {rule['metric']} {rule['compare']} {side} {rule['margin']:g}"
        model = "" if rule["against"] == "absolute" else f" against the {rule['against']}"
        rows.append((rule["name"], rule["verdict"], figure, *ends, asked + model))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
