"""The gate decides whether a model may be released: paired figures, intervals, rules, a decision."""

from srpo_core.gates.decision import decide, require_passed
from srpo_core.gates.verdict import verdict

__all__ = ["decide", "require_passed", "verdict"]
