"""Statistics of preference data: of a data set, and of what stage ingest made of it."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.data.annotators import AnnotatorAgreement, annotator_agreement
from srpo_core.data.choices import SPLITS, BenchmarkPrompt, Choice
from srpo_core.data.kept import KeptRecords
from srpo_core.prompts import normal_form

BENCHMARK: Final = "benchmark"
NO_STYLE: Final = "other"  # a record whose prompt is in no list of the benchmark


@dataclass(frozen=True)
class SplitFigures:
    """The records of one split.

    pairs: two images of different rank; ties: two of equal rank. prompts: the different ones, as they are written;
    images: the different names. styles: records by the style of their prompt.
    """

    records: int
    pairs: int
    ties: int
    prompts: tuple[str, ...]
    images: int
    styles: Mapping[str, int]


@dataclass(frozen=True)
class Statistics:
    """What a data set contains: `train` and `test`, the prompts of the benchmark, and how far its annotators agree."""

    splits: Mapping[str, SplitFigures]
    benchmark: Sequence[BenchmarkPrompt]
    annotators: AnnotatorAgreement

    def prompts(self) -> dict[str, Sequence[str]]:
        """Return the different prompts of each split and of the benchmark."""
        own: dict[str, Sequence[str]] = {split: one.prompts for split, one in self.splits.items()}
        return own | {BENCHMARK: [entry.prompt for entry in self.benchmark]}

    def styles(self) -> dict[str, int]:
        """Count the benchmark's prompts by style."""
        return _sorted(Counter(entry.style for entry in self.benchmark))


def read_statistics(source: KeptRecords) -> Statistics:
    """Count the records of a data set that stage ingest keeps. The prompts and the names of images are in memory.

    Raises:
        DataError: a file cannot be read.
    """
    benchmark = source.benchmark()
    styles = styles_by_prompt(benchmark)
    splits = {split: _split_figures(source.choices(split), styles) for split in SPLITS}
    annotated = (choice for split in SPLITS for choice in source.choices(split) if choice.annotations)
    return Statistics(splits, benchmark, annotator_agreement(annotated))


def styles_by_prompt(benchmark: Iterable[BenchmarkPrompt]) -> dict[str, str]:
    """Return the style of each prompt of the benchmark, by its `normal_form`."""
    return {normal_form(entry.prompt): entry.style for entry in benchmark}


def lengths(prompts: Sequence[str]) -> dict[str, float]:
    """Return the smallest, the median, the mean, the 95th percentile and the largest number of characters.

    Empty for no prompts.
    """
    counts = sorted(map(len, prompts))
    if not counts:
        return {}
    cuts = quantiles(counts, n=20, method="inclusive") if len(counts) > 1 else counts * 19
    return {
        "min": counts[0],
        "median": cuts[9],
        "mean": fmean(counts),
        "p95": cuts[18],
        "max": counts[-1],
    }


def count_rows(root: Path) -> dict[str, dict[str, int]]:
    """Count the rows that stage ingest wrote below `root`: `prompts` and `pairs` by split, `styles` of the test prompts.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    prompts = artifacts.read_table(root / artifacts.PROMPTS)
    pairs = artifacts.read_table(root / artifacts.PAIRS)
    styles = Counter(style for style in prompts["style"].to_pylist() if style)
    return {
        "prompts": _sorted(Counter(prompts["split"].to_pylist())),
        "styles": _sorted(styles),
        "pairs": _sorted(Counter(pairs["split"].to_pylist())),
    }


def read_findings(root: Path) -> dict[str, Any]:
    """Return what stage ingest found below `root`, by rule: `found`, `set_aside` and `severity`; empty if nothing.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    rules = artifacts.read_json(root / artifacts.VALIDATION).get("records", {}).get("rules", {})
    kept = ("found", "set_aside", "severity")
    return {rule: {key: one[key] for key in kept} for rule, one in sorted(rules.items()) if one["found"]}


def _split_figures(choices: Iterable[Choice], style_of: Mapping[str, str]) -> SplitFigures:
    records = pairs = compared = 0
    prompts: dict[str, str] = {}  # to their styles: most prompts have many records
    images: set[str] = set()
    styles: Counter[str] = Counter()
    for choice in choices:
        records += 1
        if choice.prompt not in prompts:
            prompts[choice.prompt] = style_of.get(normal_form(choice.prompt), NO_STYLE)
        images.update(choice.images)
        styles[prompts[choice.prompt]] += 1
        pairs += sum(1 for _ in choice.pairs())
        compared += len(choice.images) * (len(choice.images) - 1) // 2
    return SplitFigures(records, pairs, compared - pairs, tuple(prompts), len(images), _sorted(styles))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))
