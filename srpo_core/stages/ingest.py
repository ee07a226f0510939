"""Stage ingest: prompts, preference pairs and images of a data set, checked, as parquet."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from srpo_core import artifacts
from srpo_core.config import IngestSettings
from srpo_core.data import expectations, splits, tables
from srpo_core.data.benchmark import benchmark_prompts
from srpo_core.data.choices import BenchmarkPrompt
from srpo_core.data.decoding import read_image
from srpo_core.data.image_rules import ImageChecks, report_missing
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import open_findings
from srpo_core.data.sources import Source, open_source, source_format
from srpo_core.runtime.progress import with_progress

_log = logging.getLogger(__name__)


def run(*, seed: int, ingest: IngestSettings) -> None:
    """Read `ingest.source` in its format; write prompts, pairs, images, what is set aside, and the results of the checks.

    Raises:
        ConfigError: the format is unknown.
        DataError: a file or a table breaks a rule, a record does and `ingest.on_bad_record` is stop, or too many do.
    """
    shutil.rmtree(artifacts.PROMPTS.parent, ignore_errors=True)
    with open_findings(ingest) as findings:
        source = open_source(ingest, findings)
        train = _read(source, Preferences("train", findings))
        preferences = {"train": train, "test": _read(source, Preferences("test", findings, train))}
        for split, own in preferences.items():
            with source.images(split) as stored:
                report_missing(stored, own)
        benchmark = list(benchmark_prompts(source.benchmark(train.has), train, findings))
        findings.require_few_bad()
        # before hours of decoding, and again if that removes records
        checks, left_out = _write_tables(preferences, benchmark, ingest, seed), findings.num_left_out
        image_checks = ImageChecks(preferences, findings)
        num_images = tables.write_images(_image_rows(source, preferences, image_checks))
        image_checks.report()
        findings.require_few_bad()
        if findings.num_left_out != left_out:
            checks = _write_tables(preferences, benchmark, ingest, seed)
    findings.log()
    artifacts.write_json(artifacts.VALIDATION, checks | {"records": findings.summary()})
    _log.info("%d images from %s", num_images, ingest.source)


def _read(source: Source, preferences: Preferences) -> Preferences:
    for choice in source.choices(preferences.split):
        preferences.add(choice)
    preferences.forget_pairs()
    return preferences


def _write_tables(
    preferences: Mapping[str, Preferences],
    benchmark: Sequence[BenchmarkPrompt],
    ingest: IngestSettings,
    seed: int,
) -> dict[str, Any]:
    """Write pairs, captions and prompts, and check them: prompts of train in order of appearance, then the benchmark."""
    import pandas as pd

    captions = [row for one in preferences.values() for row in one.captions()]
    if captions:
        tables.write_rows(artifacts.CAPTIONS, tables.CAPTION_COLUMNS, captions)
    num_pairs = tables.write_pairs(chain.from_iterable(one.pair_tables() for one in preferences.values()))
    prompts = preferences["train"].prompts()
    held_out = splits.held_out_prompts(prompts, ingest.validation_share, seed)
    rows = [(prompt, "validation" if prompt in held_out else "train", "") for prompt in prompts]
    rows += [(entry.prompt, "test", entry.style) for entry in benchmark]
    tables.write_rows(
        artifacts.PROMPTS, tables.PROMPT_COLUMNS, [(number, *row) for number, row in enumerate(rows)]
    )
    _log.info("%d prompts, %d pairs from %s", len(rows), num_pairs, ingest.source)
    split_names = ["train", "validation", "test"] if ingest.validation_share else ["train", "test"]
    checks = {"prompts": expectations.check_prompts(pd.read_parquet(artifacts.PROMPTS), split_names)}
    if source_format(ingest.format).has_pairs:
        checks["pairs"] = expectations.check_pairs(pd.read_parquet(artifacts.PAIRS))
    return checks


def _image_rows(
    source: Source, preferences: Mapping[str, Preferences], checks: ImageChecks
) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield rows of the images that can be decoded, sorted by path: "test/…" before "train/…"."""
    for split in sorted(preferences):
        with source.images(split) as stored:
            for name in with_progress(preferences[split].images(), f"images of {split}"):
                content = stored.read(name)
                try:
                    width, height = read_image(content).size
                except ValueError as error:
                    checks.unreadable(split, name, stored.where, str(error))
                    continue
                checks.decoded(split, name, content, (width, height))
                yield f"{split}/{name}", content, width, height
