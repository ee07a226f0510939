"""Rules about people's ratings: which metrics they have, and what a rule can ask of them.

The figures come from finished rating tasks (`srpo_core/rating/gate_figures.py`), not from the rows of the evaluation.
"""

from collections.abc import Mapping
from typing import Any, Final

from srpo_core.artifacts import CHAMPION
from srpo_core.config import GateRule
from srpo_core.errors import ConfigError

WIN_RATE: Final = "people_win_rate"
EXCELLENT: Final = "people_excellent."
PEOPLE_METRICS: Final = (
    WIN_RATE,
    *(f"{EXCELLENT}{name}" for name in ("text_alignment", "realism", "aesthetics", "overall")),
)


def is_people(metric: str) -> bool:
    """Whether a metric is one of people's ratings."""
    return metric in PEOPLE_METRICS


def people_rules(rules: Mapping[str, GateRule], champion: str | None) -> dict[str, GateRule]:
    """Return the rules about people's ratings that apply; those against the champion do not while there is none."""
    return {
        name: rule
        for name, rule in rules.items()
        if is_people(rule.metric) and (rule.against != CHAMPION or champion is not None)
    }


def automatic_rules(rules: Mapping[str, GateRule]) -> dict[str, GateRule]:
    """Return the rules about the figures of the evaluation."""
    return {name: rule for name, rule in rules.items() if not is_people(rule.metric)}


def first_automatic(decision: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first rule of a decision about a figure of the evaluation; the training objective if all are about people."""
    objective = {"metric": decision["objective"]["metric"], "side": "at_least"}
    return next((rule for rule in decision["rules"] if not is_people(rule["metric"])), objective)


def require_fitting(name: str, rule: GateRule) -> None:
    """Check how a rule about people's ratings compares.

    Raises:
        ConfigError: a win rate is not compared as one, or a share of excellent images not as a difference; names the key.
    """
    fitting = "win_rate" if rule.metric == WIN_RATE else "difference"
    if is_people(rule.metric) and (rule.compare != fitting or rule.tie):
        raise ConfigError(
            f"gate.rules.{name}: {rule.metric} is compared as {fitting} and without a tie: set compare to {fitting}, and remove tie"
        )
