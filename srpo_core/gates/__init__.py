"""The gate decides whether a model may be released: paired figures, intervals, rules, a decision."""

from srpo_core.gates.decision import decide, require_passed

__all__ = ["decide", "require_passed"]
