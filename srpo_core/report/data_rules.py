"""What stage ingest found wrong with the records, for the pages."""

from collections.abc import Mapping
from typing import Any

from srpo_core.config import IngestRules


def broken_rules(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the rules that records broke, critical ones first: name, meaning, severity, found, set_aside and first.

    records: the part `records` of validation.json.
    """
    broken = [
        {"name": name, "meaning": IngestRules.model_fields[name].description, **rule}
        for name, rule in records["rules"].items()
        if rule["found"]
    ]
    return sorted(broken, key=lambda rule: (rule["severity"], rule["name"]))
