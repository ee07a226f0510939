"""Recompute the verdicts of a run from its figures, so that an edited verdict is not published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.artifacts import (
    DECISION,
    EVALUATION_SUMMARY,
    FIGURES,
    PROOF,
    QUANTIZED,
    SELECT_SCORES,
    SELECTION,
)
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError, GateError
from srpo_core.fidelity.limits import broken_limits
from srpo_core.gates import require_passed, verdict
from srpo_core.gates.completeness import expected_rows, require_means
from srpo_core.gates.pairs import pair_up
from srpo_core.gates.verdict import require_same
from srpo_core.prompts import read_styles, read_texts
from srpo_core.quantizers import released_formats
from srpo_core.quantizers.source import checkpoint_digest
from srpo_core.rating.gate_figures import people_found
from srpo_core.release.layout import require_existing
from srpo_core.selection.choice import recomputed_selection


def require_recomputed(root: Path, settings: Settings) -> None:
    """Require that the verdicts of the run in `root` follow from its figures and its settings.

    Raises:
        GateError: the gate refused the model, or decision.json or selection.json does not follow from the figures.
        ArtifactError: the summary has other means than the figures, select's scores lack an image, or proof.json does not
            follow from its figures and the limits or is of other files.
    """
    decision = artifacts.read_json(require_existing(root, DECISION))
    require_passed(decision)
    selection = artifacts.read_json(require_existing(root, SELECTION))
    _require_decision(root, settings, decision, selection)
    _require_selection(root, settings, selection)
    _require_proof(root, settings)


def _require_selection(root: Path, settings: Settings, selection: Mapping[str, Any]) -> None:
    """Require that the checkpoint was chosen by the scores of all saved checkpoints on the validation prompts."""
    computed = recomputed_selection(
        artifacts.read_table(require_existing(root, SELECT_SCORES)),
        read_texts("validation", root),
        read_styles("validation", root),
        artifacts.saved_steps(root),
        seed=settings.seed,
        select=settings.select,
    )
    _require_equal(selection, computed, SELECTION, "select")


def _require_decision(
    root: Path, settings: Settings, decision: Mapping[str, Any], selection: Mapping[str, Any]
) -> None:
    table = artifacts.read_table(require_existing(root, FIGURES))
    means = artifacts.read_json(require_existing(root, EVALUATION_SUMMARY))["means"]
    require_means(pair_up(table, FIGURES), means, FIGURES, EVALUATION_SUMMARY)
    people = people_found(
        settings.gate,
        champion=settings.champion,
        model=settings.model,
        checkpoint=Path(selection["checkpoint"]),
        figures=table,
        root=root,
    )
    computed = verdict(
        table,
        selection,
        expected_rows(
            read_texts("test", root),
            read_styles("test", root),
            settings.seed,
            settings.evaluate,
            settings.champion,
        ),
        seed=settings.seed,
        gate=settings.gate,
        people=people.figures,
    )
    computed |= {"people": people.summary} if people.summary else {}
    if not computed["passed"]:
        raise GateError(
            f"{DECISION} says passed, but {FIGURES}, {SELECTION} and gate.rules refuse the model: "
            f"{computed['reason']} Run 'dvc repro --force -s gate' to restore the decision"
        )
    _require_equal(decision, computed, DECISION, "gate")


def _require_equal(
    recorded: Mapping[str, Any], recomputed: Mapping[str, Any], where: Path, stage: str
) -> None:
    """Require that a recorded result is the recomputed one, its sentences included."""
    computed = json.loads(json.dumps(recomputed))
    require_same(recorded, computed, str(where), stage)
    # sentences round the figures, so they may differ only if a figure does
    if recorded != computed and _numbers(recorded) == _numbers(computed):
        raise GateError(
            f"{where} gives another reason than its own figures: run 'dvc repro --force -s {stage}' to decide anew"
        )


def _require_proof(root: Path, settings: Settings) -> None:
    """Require that each format meets its limits by its recorded figures, and that these are of the files at hand.

    The files must have been written from the selected checkpoint.
    """
    proof = artifacts.read_json(require_existing(root, PROOF))
    selected = artifacts.read_json(require_existing(root, SELECTION))["checkpoint"]
    source = checkpoint_digest(require_existing(root, Path(selected)))
    given = {name: limit for name, (limit, _) in released_formats(settings.quantize.formats).items()}
    for name, figures in proof["formats"].items():
        limits = settings.quantize.formats.get(given.get(name, ""))
        if limits is None or figures["limits"] != limits.model_dump():
            raise _forged(f"format {name} was measured with other limits than quantize.formats has")
        if broken := broken_limits(figures, limits):
            raise _forged(f"format {name} has no reason in refused, but {'; '.join(broken)}")
        for made, entry in figures["files"].items():
            if artifacts.sha256(require_existing(root, QUANTIZED / made)) != entry["sha256"]:
                raise _forged(f"the figures of format {name} are of another file than {QUANTIZED / made}")
            if entry["source_sha256"] != source:
                raise _forged(f"{made} was not written from {selected}, which was selected and evaluated")


def _forged(fault: str) -> ArtifactError:
    return ArtifactError(
        f"{PROOF} is not the result of stage quantize ({fault}): run 'dvc repro --force -s quantize'"
    )


def _numbers(tree: Any) -> list[float]:
    if isinstance(tree, Mapping):
        return [number for key in sorted(tree) for number in _numbers(tree[key])]
    if isinstance(tree, list):
        return [number for entry in tree for number in _numbers(entry)]
    return [tree] if isinstance(tree, float) else []
