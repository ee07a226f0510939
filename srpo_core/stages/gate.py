"""Stage gate: may this model be released? A refusal is a result, not a crash."""

from logging import getLogger

from srpo_core import artifacts
from srpo_core.config import GateSettings
from srpo_core.gates.decision import decide, rule_figures
from srpo_core.gates.pairs import pair_up

log = getLogger(__name__)


def run(*, seed: int, gate: GateSettings) -> None:
    """Check the evaluation against the rules and write the decision. A refused model is not an error of the stage.

    Raises:
        ArtifactError: the evaluation or the selection is missing or damaged.
        ConfigError: a rule's metric was not measured, or its parts do not fit each other.
    """
    pairs = pair_up(artifacts.read_table(artifacts.FIGURES), artifacts.FIGURES)
    decision = decide(pairs, artifacts.read_json(artifacts.SELECTION), seed=seed, gate=gate)
    artifacts.write_json(artifacts.DECISION, decision)
    artifacts.write_json(artifacts.GATE_FIGURES, rule_figures(decision))
    log.info("%s: %s", decision["verdict"], decision["reason"])
