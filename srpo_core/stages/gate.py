"""Stage gate: may this model be released? A refusal is a result, not a crash."""

from logging import getLogger
from pathlib import Path

from srpo_core import artifacts
from srpo_core.config import EvaluateSettings, GateSettings, ModelSettings
from srpo_core.gates import verdict
from srpo_core.gates.completeness import expected_rows, require_means
from srpo_core.gates.decision import rule_figures
from srpo_core.gates.pairs import pair_up
from srpo_core.prompts import read_styles, read_texts
from srpo_core.rating.gate_figures import People, people_found, require_ratings

log = getLogger(__name__)


def run(
    *, seed: int, champion: str | None, model: ModelSettings, evaluate: EvaluateSettings, gate: GateSettings
) -> None:
    """Check the evaluation against the rules and write the decision. A refused model is not an error of the stage.

    Raises:
        ArtifactError: the evaluation or the selection is missing, damaged or incomplete.
        ConfigError: a rule's metric was not measured, or its parts do not fit each other.
        GateError: a rule about people's ratings has no finished ratings of this checkpoint; the message says how to collect them.
    """
    table, summary = artifacts.read_table(artifacts.FIGURES), artifacts.EVALUATION_SUMMARY
    means = artifacts.read_json(summary)["means"]
    require_means(pair_up(table, artifacts.FIGURES), means, artifacts.FIGURES, summary)
    selection = artifacts.read_json(artifacts.SELECTION)
    people = People()
    if selection["admissible"]:
        people = people_found(
            gate, champion=champion, model=model, checkpoint=Path(selection["checkpoint"]), figures=table
        )
        require_ratings(gate, people)
    decision = verdict(
        table,
        selection,
        expected_rows(read_texts("test"), read_styles("test"), seed, evaluate, champion),
        seed=seed,
        gate=gate,
        people=people.figures,
    )
    decision |= {"people": people.summary} if people.summary else {}
    artifacts.write_json(artifacts.DECISION, decision)
    artifacts.write_json(artifacts.GATE_FIGURES, rule_figures(decision))
    log.info("%s: %s", decision["verdict"], decision["reason"])
