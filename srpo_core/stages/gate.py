"""Stage gate: may this model be released? A refusal is a result, not a crash."""

from logging import getLogger

from srpo_core import artifacts
from srpo_core.config import EvaluateSettings, GateSettings
from srpo_core.gates import verdict
from srpo_core.gates.completeness import expected_rows, require_means
from srpo_core.gates.decision import rule_figures
from srpo_core.gates.pairs import pair_up
from srpo_core.prompts import read_styles, read_texts

log = getLogger(__name__)


def run(*, seed: int, champion: str | None, evaluate: EvaluateSettings, gate: GateSettings) -> None:
    """Check the evaluation against the rules and write the decision. A refused model is not an error of the stage.

    Raises:
        ArtifactError: the evaluation or the selection is missing, damaged or incomplete.
        ConfigError: a rule's metric was not measured, or its parts do not fit each other.
    """
    table, summary = artifacts.read_table(artifacts.FIGURES), artifacts.EVALUATION_SUMMARY
    means = artifacts.read_json(summary)["means"]
    require_means(pair_up(table, artifacts.FIGURES), means, artifacts.FIGURES, summary)
    decision = verdict(
        table,
        artifacts.read_json(artifacts.SELECTION),
        expected_rows(read_texts("test"), read_styles("test"), seed, evaluate, champion),
        seed=seed,
        gate=gate,
    )
    artifacts.write_json(artifacts.DECISION, decision)
    artifacts.write_json(artifacts.GATE_FIGURES, rule_figures(decision))
    log.info("%s: %s", decision["verdict"], decision["reason"])
