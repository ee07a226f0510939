"""What becomes of a record that breaks a rule: the run ends, or the record is set aside, or it is only counted.

A reader reports a `Problem` to `Findings` and leaves the record out if the answer is True. `ingest.rules` has the
severity of each rule, and the descriptions of `IngestRules` are its meaning.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, TextIO

from srpo_core import artifacts
from srpo_core.config import IngestSettings
from srpo_core.errors import DataError

# the longest prompts of DiffusionDB have about 2,000 characters; T5 uses at most 512 tokens
LONGEST_PROMPT: Final = 4000
SHORTEST_SIDE: Final = 16
LARGEST_ASPECT: Final = 8
# a record that breaks one of these rules can stay in the tables; one that breaks another cannot, whatever the severity
KEPT_WITH_WARNING: Final = frozenset(
    {
        "control_character",
        "contradiction",
        "prompt_spelling",
        "small_image",
        "elongated_image",
        "equal_images",
        "trained_test_image",
    }
)
# a record that breaks one of these rules is whole: it says again, or otherwise, what another record says, or nothing
WHOLE_RECORDS: Final = frozenset(
    {
        "doubled_record",
        "contradiction",
        "tied_record",
        "prompt_spelling",
        "trained_test_prompt",
        "trained_benchmark_prompt",
        "doubled_benchmark_prompt",
        "equal_images",
        "trained_test_image",
    }
)
# they are known only when images are read
IMAGE_RULES: Final = (
    "missing_image",
    "unreadable_image",
    "small_image",
    "elongated_image",
    "equal_images",
    "trained_test_image",
)
SHOWN_TEXT: Final = 500
PUBLISHED_BAD_SHARE: Final = (
    0.001  # of the records of a published data set; the presets for FLUX.1 allow as much
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Problem:
    """A record that breaks a rule.

    file: the file or archive of the record. record: its index there, from 0. detail: what is wrong, as one line.
    text: the record as it is in the file.
    """

    file: str
    record: int
    rule: str
    detail: str
    text: str = ""

    def __str__(self) -> str:
        return one_line(f"{self.file}: record {self.record}: {self.detail}")


def one_line(text: str) -> str:
    """Return text of bounded length with each character escaped that a terminal would not print, such as a line break."""
    shown = text if len(text) <= SHOWN_TEXT else f"{text[:SHOWN_TEXT]}..."
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)


class Findings:
    """Collect the problems of a run: count them by rule, and write what is set aside to `quarantine`, a line each."""

    def __init__(self, ingest: IngestSettings, quarantine: TextIO | None) -> None:
        self._ingest, self._quarantine = ingest, quarantine
        self._severities: dict[str, str] = ingest.rules.model_dump()
        self._first: dict[str, Problem] = {}
        self._counts: Counter[str] = Counter()
        self._set_aside: Counter[str] = Counter()
        self._bad: dict[str, Counter[str]] = {}  # by file, then by rule
        self._first_bad: dict[tuple[str, str], Problem] = {}  # by file and rule
        self._read: Counter[str] = Counter()
        self._with_checked_images: Mapping[str, int] = {}
        self._uncompared: Counter[str] = Counter()
        self._ended_by: Problem | None = None

    def of_another_pass(self) -> "Findings":
        """Return findings that leave out the same records and end no run, for a file whose problems were reported before."""
        return Findings(self._ingest.model_copy(update={"on_bad_record": "quarantine"}), None)

    def count(self, file: str, records: int = 1) -> None:
        """Count records that were read from a file, good or bad."""
        self._read[file] += records

    def count_uncompared(self, file: str, records: int) -> None:
        """Count records of a file that were left out since nobody compared their images."""
        self._uncompared[file] += records

    def set_with_checked_images(self, records: Mapping[str, int]) -> None:
        """Set the numbers of records by file of which at least one image was checked so far."""
        self._with_checked_images = records

    def is_critical(self, rule: str) -> bool:
        """Whether a record that breaks the rule is bad."""
        return self._severities[rule] == "critical"

    def leaves_out(self, rule: str) -> bool:
        """Whether a record that breaks the rule is left out."""
        return self.is_critical(rule) or rule not in KEPT_WITH_WARNING

    def ends_run(self, rule: str) -> bool:
        """Whether a record that breaks the rule ends the run."""
        return self.is_critical(rule) and self._ingest.on_bad_record == "stop"

    @property
    def num_left_out(self) -> int:
        """Number of records that were left out."""
        return self._set_aside.total()

    def report(self, problem: Problem) -> bool:
        """Count a problem, and return whether its record must be left out; then it is in the quarantine.

        A record must be reported as left out only once.

        Raises:
            DataError: the rule is critical, and `ingest.on_bad_record` is stop.
        """
        left_out = self.leaves_out(problem.rule)
        self._counts[problem.rule] += 1
        self._first.setdefault(problem.rule, problem)
        if left_out:
            entry = asdict(problem) | {
                "detail": one_line(problem.detail),
                "severity": self._severities[problem.rule],
                "text": problem.text[:SHOWN_TEXT],
            }
            # json.dumps writes ASCII: a text may contain half of a surrogate pair
            if self._quarantine:
                self._quarantine.write(json.dumps(entry, sort_keys=True) + "\n")
            self._set_aside[problem.rule] += 1
        if self.is_critical(problem.rule):
            self._bad.setdefault(problem.file, Counter())[problem.rule] += 1
            self._first_bad.setdefault((problem.file, problem.rule), problem)
        if self.ends_run(problem.rule):
            self._ended_by = problem
            raise DataError(str(problem))
        return left_out

    def way_out(self) -> str:
        """Return what the user can do about the record that ended the run, to put behind its message; empty without one."""
        if self._ended_by is None:
            return ""
        rule, share = self._ended_by.rule, self._ingest.max_bad_share or PUBLISHED_BAD_SHARE
        warning = f"make its rule a warning ({_as_warning(rule)}), or " if rule in WHOLE_RECORDS else ""
        return (
            f". Correct it, {warning or 'or '}set bad records aside (this one breaks the rule {rule}): "
            f"ingest.on_bad_record=quarantine and ingest.max_bad_share={share:g}"
        )

    def require_few_bad(self) -> None:
        """Raise `DataError` if more records of a file are bad than `ingest.max_bad_share` allows.

        Those that are bad because of an image are also compared with the records of which an image was checked: with
        `ingest.check_images: used` these are few.
        """
        for file, bad in self._bad.items():
            read = self._read[file]
            self._require_few(file, bad, read, f"{read} records")
            checked = min(read, self._with_checked_images.get(file, read))
            of_images = Counter({rule: number for rule, number in bad.items() if rule in IMAGE_RULES})
            self._require_few(file, of_images, checked, f"{checked} records with a checked image")

    def _require_few(self, file: str, bad: Counter[str], of: int, records: str) -> None:
        share, number = self._ingest.max_bad_share, bad.total()
        allowed = math.floor(share * of + 1e-6)  # 0.29 * 100 is less than 29
        if number <= allowed:
            return
        by_rule = ", ".join(f"{rule} {found}" for rule, found in sorted(bad.items()))
        first = next(
            problem for (own, rule), problem in self._first_bad.items() if own == file and rule in bad
        )
        warnings = " ".join(f"--set {_as_warning(rule)}" for rule in sorted(WHOLE_RECORDS.intersection(bad)))
        advice = f"make the rule a warning with {warnings}, " if warnings else ""
        needed = min(1.0, math.ceil(number / max(of, 1) * 10_000) / 10_000)
        raise DataError(
            f"{one_line(file)}: {number} of {records} are bad ({by_rule}), and the share {share:g} of each file that "
            f"ingest.max_bad_share allows is {allowed} here; the first is {first}. {artifacts.QUARANTINE} "
            f"has all of them: correct the file, {advice}or allow more with --set ingest.max_bad_share={needed:g}"
        )

    def summary(self) -> dict[str, Any]:
        """Return the records read by file, how many are bad, and severity and counts of every rule.

        `uncompared` is there only if a data set has such records: by file, see `count_uncompared`.
        """
        uncompared = {"uncompared": dict(sorted(self._uncompared.items()))} if self._uncompared else {}
        return uncompared | {
            "read": dict(sorted(self._read.items())),
            "bad": sum(bad.total() for bad in self._bad.values()),
            "rules": {
                rule: {
                    "severity": severity,
                    "found": self._counts[rule],
                    "set_aside": self._set_aside[rule],
                    "first": str(self._first[rule]) if rule in self._first else None,
                }
                for rule, severity in self._severities.items()
            },
        }

    def log(self) -> None:
        """Log one line for each rule that is broken."""
        for rule, number in sorted(self._counts.items()):
            outcome = f"{self._set_aside[rule]} set aside" if self._set_aside[rule] else "kept"
            _log.warning("%s: %d (%s), the first is %s", rule, number, outcome, self._first[rule])


def _as_warning(rule: str) -> str:
    return f"ingest.rules.{rule}=warning"


@contextmanager
def open_findings(ingest: IngestSettings) -> Iterator[Findings]:
    """Collect problems, with `artifacts.QUARANTINE` for records that are set aside; the file is kept on `DataError`."""
    refusal: DataError | None = None
    with artifacts.replacing(artifacts.QUARANTINE) as partial, partial.open("w", encoding="ascii") as file:
        findings = Findings(ingest, file)
        try:
            yield findings
        except DataError as error:
            advice = findings.way_out()
            refusal = DataError(f"{error}{advice}") if advice else error
    if refusal is not None:
        raise refusal
