"""Compare the gate's figures of runs that differ only in their seed, and find margins that most of them pass.

python benchmarks/seeds.py PATH PATH ...      decision.json of each run, or a directory that contains it

A path may be a run's workspace (`.srpo/runs/…/workspace`, or a checkout), its `runs/gate`, or the output of
`srpo evaluate`. Prints JSON lines. For each rule: the mean of its figure, its standard deviation between runs, the mean
half width of its interval, the runs that it refuses at its current margin, the margin that `--pass-share` of the runs
(default 4 of 5) pass, and the margin that all pass. The last line counts the runs that would pass every rule at these
margins: different rules may be passed by different runs.

Such a margin describes good runs; it does not decide what is good enough: see docs/gates.md, "How to set a margin".
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

from srpo_core.errors import ArtifactError, SrpoError
from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.gates.rules import BY_PROOF_OF_BREACH

LEAST_RUNS: Final = 2
DIGITS: Final = 3
PLACES: Final = (Path(), Path("runs/gate"), Path("workspace/runs/gate"))
# whether a higher margin is looser
RISES: Final = {"at_least": False, "at_most": True, "within": True}


def main() -> None:
    """Read the decisions, compare them and print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pass-share", type=float, default=0.8, help="of the runs, in (0, 1]")
    options = parser.parse_args()
    if len(options.runs) < LEAST_RUNS or not 0 < options.pass_share <= 1:
        parser.error("give two runs or more, and a share above 0 and at most 1")
    try:
        decisions = {str(path): read_decision(path) for path in options.runs}
        for line in compare(decisions, options.pass_share):
            print(json.dumps(line), flush=True)
    except SrpoError as error:
        raise SystemExit(str(error)) from None


def read_decision(path: Path) -> dict[str, Any]:
    """Read the decision at a path, see above. Raises `ArtifactError` if there is none."""
    for file in (path, *(path / place / "decision.json" for place in PLACES)):
        if file.is_file():
            decision: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return decision
    raise ArtifactError(f"{path} is no decision.json and contains none: give the directory of a finished run")


def compare(decisions: Mapping[str, Mapping[str, Any]], pass_share: float) -> Iterator[dict[str, Any]]:
    """Yield a line for each rule, in the order of the first decision, and one for all rules together.

    Raises:
        ArtifactError: the decisions have different rules.
    """
    by_run = {run: {rule["name"]: rule for rule in one["rules"]} for run, one in decisions.items()}
    first = next(iter(by_run.values()))
    if any(rules.keys() != first.keys() for rules in by_run.values()):
        raise ArtifactError("these runs have different rules: compare runs of one params.yaml")
    need = math.ceil(round(pass_share * len(by_run), 9))
    refused: dict[str, list[str]] = {run: [] for run in by_run}
    for name in first:
        rules = {run: own[name] for run, own in by_run.items()}
        if all(rule["value"] is None for rule in rules.values()):
            yield {"rule": name, "measured": 0, "reason": first[name]["reason"]}
            continue
        line = _line(name, rules, need)
        yield line
        for run, rule in rules.items():
            if rule["severity"] != "warn" and not _holds(rule, line["margin_for_most"]):
                refused[run].append(name)
    yield {
        "runs": len(by_run),
        "passed_now": sum(one["passed"] for one in decisions.values()),
        "would_pass_at_margin_for_most": sum(not names for names in refused.values()),
        "then_refused_by": {run: names for run, names in refused.items() if names},
    }


def needed_margin(rule: Mapping[str, Any]) -> float:
    """Return the strictest margin that the rule's interval passes; NaN without an interval."""
    low, high = rule["low"], rule["high"]
    if low is None:
        return math.nan
    breach = rule["severity"] in BY_PROOF_OF_BREACH
    neutral = COMPARISONS[rule["compare"]].neutral
    if rule["side"] == "at_least":
        return float(high if breach else low)
    if rule["side"] == "at_most":
        return float(low if breach else high)
    outside = (low - neutral, neutral - high) if breach else (high - neutral, neutral - low)
    return float(max(0.0, *outside))


def _line(name: str, rules: Mapping[str, Mapping[str, Any]], need: int) -> dict[str, Any]:
    one = next(iter(rules.values()))
    found = [rule for rule in rules.values() if rule["low"] is not None]
    values = [rule["value"] for rule in found]
    rises = RISES[one["side"]]
    # from strictest to loosest
    needed = sorted((needed_margin(rule) for rule in found), reverse=not rises)
    return {
        "rule": name,
        "metric": one["metric"],
        "compare": one["compare"],
        "side": one["side"],
        "severity": one["severity"],
        "measured": len(found),
        "mean": round(fmean(values), 4) if values else None,
        "deviation": round(stdev(values), 4) if len(values) >= LEAST_RUNS else None,
        "half_width": round(fmean((rule["high"] - rule["low"]) / 2 for rule in found), 4) if found else None,
        "margin_now": one["margin"],
        "refused_now": [run for run, rule in rules.items() if not rule["passed"]],
        "margin_for_most": _loosened(needed[need - 1], rises=rises) if len(needed) >= need else None,
        "margin_for_all": _loosened(needed[-1], rises=rises) if len(needed) == len(rules) else None,
    }


def _loosened(margin: float, *, rises: bool) -> float:
    """Round a margin to few digits, towards the looser side."""
    scale = 10**DIGITS
    return (math.ceil if rises else math.floor)(round(margin * scale, 6)) / scale


def _holds(rule: Mapping[str, Any], margin: float | None) -> bool:
    needed = needed_margin(rule)
    if margin is None or math.isnan(needed):
        return False
    return needed <= margin + 1e-9 if RISES[rule["side"]] else needed >= margin - 1e-9


if __name__ == "__main__":
    main()
