"""Settings with which the gate would decide nothing are refused."""

from collections.abc import Mapping
from typing import Final

from srpo_core.artifacts import CHAMPION
from srpo_core.config import GateRule
from srpo_core.errors import ConfigError
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.rules import limits

MUST_BE_SHOWN: Final = "refuse"


def require_effect(rules: Mapping[str, GateRule]) -> None:
    """Require that a first model must prove something, and that every rule can fail.

    Raises:
        ConfigError: no rule of severity refuse applies without a champion, or a rule's margin is outside what its figure
            can reach; names the key.
    """
    if not any(rule.severity == MUST_BE_SHOWN and rule.against != CHAMPION for rule in rules.values()):
        raise ConfigError(
            f"gate.rules: none of {len(rules)} rules has severity: {MUST_BE_SHOWN} and against: base or absolute, so a "
            "first model would pass without a proof: give one of them this severity"
        )
    for name, rule in rules.items():
        least, greatest = COMPARISONS[rule.compare].range
        low, high = limits(rule)
        if (low is None or low <= least) and (high is None or high >= greatest):
            raise ConfigError(
                f"gate.rules.{name}.margin is {rule.margin:g}, but {rule.compare} is always between {least:g} and "
                f"{greatest:g}, so the rule can never fail: set a margin between them, or remove the rule"
            )
