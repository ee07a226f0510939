"""From the evaluation's rows and the rules to the decision, without files: stage gate and the release compute it alike."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from srpo_core.artifacts import FIGURES
from srpo_core.config import GateSettings
from srpo_core.errors import GateError
from srpo_core.gates.comparisons import require_valid_rules
from srpo_core.gates.completeness import Expected, require_complete
from srpo_core.gates.decision import decide
from srpo_core.gates.effect import require_effect
from srpo_core.gates.pairs import damaged, pair_up
from srpo_core.gates.rules import Measurement
from srpo_core.gates.staged import outcome

# kinds of CPU differ in the last bits of a mean
AGREES_TO: Final = 1e-6


def verdict(  # everything that the decision depends on
    table: Any,
    selection: Mapping[str, Any],
    expected: Expected,
    *,
    seed: int,
    gate: GateSettings,
    source: Path = FIGURES,
    people: Mapping[str, Measurement] = MappingProxyType({}),
) -> dict[str, Any]:
    """Decide by the rows of an evaluation (a `pyarrow.Table`, see stage evaluate) whether the model may be released.

    selection: the result of stage select; expected: the rows that the settings ask for; source: named by errors;
    people: figures of the rules about people's ratings.
    Returns the content of `decision.json`. The same input gives the same decision on every machine of one kind.

    Raises:
        ArtifactError: rows are missing, repeated, not asked for, or of a wrong type, or the evaluation ended too early.
        ConfigError: a rule's metric was not measured, its parts do not fit each other, or no rule can refuse the model.
    """
    require_valid_rules(gate.rules)
    require_effect(gate.rules)
    pairs = pair_up(table, source)
    stage = require_complete(pairs, expected, source)
    if not stage.is_last and outcome(pairs, selection, seed=seed, gate=gate, stage=stage) == "undecided":
        raise damaged(
            source,
            f"ends after {stage.size} of {stage.num_prompts[-1]} prompts, but their figures neither refuse the model nor show "
            "that all rules hold",
        )
    return decide(pairs, selection, seed=seed, gate=gate, stage=stage, people=people)


def require_same(
    recorded: Mapping[str, Any], recomputed: Mapping[str, Any], where: str, stage: str = "gate"
) -> None:
    """Require that a recorded result says what the figures say, such as a decision's verdict, rules and intervals.

    where: names the recorded result in the error; stage: writes it.

    Raises:
        GateError: they differ; names the first key that does, with both values.
    """
    for key, ours, theirs in _differences(recorded, recomputed, ""):
        raise GateError(
            f"{where} does not follow from the figures and the rules: {key} is {ours!r}, but the figures give "
            f"{theirs!r}; run 'dvc repro --force -s {stage}' to decide anew"
        )


def _differences(recorded: Any, recomputed: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, recorded, recomputed) of every leaf that differs; sentences repeat figures and are not compared."""
    if isinstance(recorded, Mapping) and isinstance(recomputed, Mapping):
        # the verdict first, because it is what matters
        names = dict.fromkeys(["passed", "verdict", *sorted(recorded.keys() | recomputed.keys())])
        for name in names:
            if name != "reason" and (name in recorded or name in recomputed):
                yield from _differences(recorded.get(name), recomputed.get(name), f"{key}.{name}".strip("."))
    elif isinstance(recorded, list) and isinstance(recomputed, list) and len(recorded) == len(recomputed):
        for number, (ours, theirs) in enumerate(zip(recorded, recomputed, strict=True)):
            name = ours.get("name", number) if isinstance(ours, Mapping) else number
            yield from _differences(ours, theirs, f"{key}.{name}".strip("."))
    elif not _agree(recorded, recomputed):
        yield key, recorded, recomputed


def _agree(ours: Any, theirs: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (ours, theirs))
    if numbers:
        return math.isclose(ours, theirs, rel_tol=AGREES_TO, abs_tol=AGREES_TO)
    return type(ours) is type(theirs) and bool(ours == theirs)
