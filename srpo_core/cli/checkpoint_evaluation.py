"""Evaluate any checkpoint beside base and champion, and apply the rules of the gate, outside the stage graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError
from srpo_core.gates import verdict
from srpo_core.gates.completeness import expected_rows
from srpo_core.prompts import read_styles, read_texts
from srpo_core.rating.gate_figures import people_found
from srpo_core.stages.evaluate import ends_when_decided, evaluate_models, metric_context, models_to_compare

# The gate reads the result of stage select; a checkpoint given on the command line has none.
GIVEN_BY_USER: Final = {"admissible": [0], "reason": "given on the command line"}


def evaluate_checkpoint(settings: Settings, checkpoint: Path, target: Path) -> dict[str, Any]:
    """Generate images of the test prompts with base, checkpoint and champion, measure them, and return the decision.

    Writes images.parquet, figures.parquet, summary.json and decision.json to `target`. Uses the embeddings of stage
    embed. An interrupted evaluation is resumed.

    Raises:
        ArtifactError: the checkpoint is not a directory with a transformer's weights.
        ConfigError: a metric is unknown or not possible with these settings.
        StoreError: the champion is missing in the store or damaged.
    """
    if not (checkpoint / "config.json").is_file():
        raise ArtifactError(
            f"{checkpoint} is not a checkpoint: give a directory with a transformer's config.json and weights or adapters, such as "
            f"{artifacts.step_directory(10)}"
        )
    summary = evaluate_models(
        models_to_compare(checkpoint, settings.champion),
        target,
        seed=settings.seed,
        model=settings.model,
        context=metric_context(settings.rewards, settings.judge, settings.control_words, settings.evaluate),
        generate=settings.generate,
        evaluate=settings.evaluate,
        ends=ends_when_decided(GIVEN_BY_USER, settings.seed, settings.gate),
        resources=settings.resources,
    )
    artifacts.write_json(
        target / artifacts.EVALUATION_SUMMARY.name,
        {"checkpoint": str(checkpoint), "champion": settings.champion, **summary},
    )
    figures = target / artifacts.FIGURES.name
    table = artifacts.read_table(figures)
    people = people_found(
        settings.gate, champion=settings.champion, model=settings.model, checkpoint=checkpoint, figures=table
    )
    decision = verdict(
        table,
        GIVEN_BY_USER,
        expected_rows(
            read_texts("test"), read_styles("test"), settings.seed, settings.evaluate, settings.champion
        ),
        seed=settings.seed,
        gate=settings.gate,
        source=figures,
        people=people.figures,
    )
    decision |= {"people": people.summary} if people.summary else {}
    artifacts.write_json(target / artifacts.DECISION.name, decision)
    return decision


def rule_table(decision: Mapping[str, Any]) -> list[str]:
    """Format a decision's rules as lines of a table, the header first.

    Comparing the half width of the interval with the margin shows whether there were enough prompts.
    """
    rows = [("rule", "verdict", "figure", "interval", "half width", "required")]
    for rule in decision["rules"]:
        value, low, high = rule["value"], rule["low"], rule["high"]
        ends = ("-", "-") if low is None else (f"{low:+.3f} … {high:+.3f}", f"{(high - low) / 2:.3f}")
        figure = "-" if value is None else f"{value:+.3f}"
        side = rule["side"].replace("_", " ")
        required = f"{rule['severity']}: {rule['metric']} {rule['compare']} {side} {rule['margin']:g}"
        model = "" if rule["against"] == "absolute" else f" against the {rule['against']}"
        rows.append((rule["name"], rule["verdict"], figure, *ends, required + model))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
