"""The prompts to evaluate with: each once, and none that is trained on."""

import json
from collections.abc import Iterable, Iterator

from srpo_core.data.choices import BenchmarkPrompt
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import Findings, Problem
from srpo_core.prompts import normal_form


def benchmark_prompts(
    entries: Iterable[BenchmarkPrompt], train: Preferences, findings: Findings
) -> Iterator[BenchmarkPrompt]:
    """Yield entries in their order, without those that repeat an earlier one or a prompt of `train`, in any spelling.

    Raises:
        DataError: an entry breaks a rule and ends the run.
    """
    known: dict[str, BenchmarkPrompt] = {}
    for entry in entries:
        form = normal_form(entry.prompt)
        if form in known:
            first = known[form]
            spelled = "" if first.prompt == entry.prompt else f" as {first.prompt!r}"
            detail = f"prompt {entry.prompt!r} is also in {first.file}{spelled} (record {first.record}), which is kept"
            findings.report(_problem(entry, "doubled_benchmark_prompt", detail))
            continue
        trained = train.place(entry.prompt)
        if trained is not None:
            text, (file, record) = trained
            spelled = "" if text == entry.prompt else f" as {text!r}"
            detail = (
                f"prompt {entry.prompt!r} is also in {file}{spelled} (record {record}): train and benchmark must be "
                "disjoint, so remove one of the two"
            )
            findings.report(_problem(entry, "trained_benchmark_prompt", detail))
            continue
        known[form] = entry
        yield entry


def _problem(entry: BenchmarkPrompt, rule: str, detail: str) -> Problem:
    return Problem(entry.file, entry.record, rule, detail, json.dumps(entry.prompt))
