"""Stage ingest: prompts, preference pairs and images of a data set, checked, as parquet."""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from typing import Any

from srpo_core import artifacts
from srpo_core.config import IngestSettings
from srpo_core.data import expectations, splits, tables
from srpo_core.data.benchmark import benchmark_prompts
from srpo_core.data.choices import BenchmarkPrompt
from srpo_core.data.image_rules import ImageChecks
from srpo_core.data.images import ImageSource
from srpo_core.data.kept import check_named_images, read_preferences
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import open_findings
from srpo_core.data.sources import open_source, source_format
from srpo_core.data.used_images import used_images

_log = logging.getLogger(__name__)


def run(
    *,
    seed: int,
    ingest: IngestSettings,
    train_rollout_source: str,
    check_reward_max_pairs: int | None,
    evaluate_real_images: int,
) -> None:
    """Read `ingest.source` in its format; write prompts, pairs, images, what is set aside, and the results of the checks.

    Images that no later stage reads with these settings are not written, and with `ingest.check_images: used` not
    opened.

    Raises:
        ConfigError: the format is unknown.
        DataError: a file or a table breaks a rule, a record does and `ingest.on_bad_record` is stop, or too many do.
    """
    shutil.rmtree(artifacts.PROMPTS.parent, ignore_errors=True)
    used = partial(
        used_images,
        rollout_source=train_rollout_source,
        max_pairs=check_reward_max_pairs,
        real_images=evaluate_real_images,
    )
    with open_findings(ingest) as findings, ExitStack() as opened:
        source = open_source(ingest, findings)
        preferences = read_preferences(source, findings)
        train = preferences["train"]
        benchmark = list(benchmark_prompts(source.benchmark(train.has), train, findings))
        findings.require_few_bad()
        images = cache(lambda split: opened.enter_context(source.images(split)))
        image_checks = ImageChecks(preferences, findings)
        # a record with a bad image may be removed, and then others are used
        while True:
            checks, left_out = _write_tables(preferences, benchmark, ingest, seed), findings.num_left_out
            if ingest.check_images == "all":
                names = {split: own.images() for split, own in preferences.items()}
            else:
                names = _by_split(used())
            check_named_images(images, names, image_checks)
            findings.require_few_bad()
            if findings.num_left_out == left_out:
                break
        num_images = tables.write_images(_image_rows(images, used(), image_checks))
    findings.log()
    artifacts.write_json(artifacts.VALIDATION, checks | {"records": findings.summary()})
    _log.info("%d images from %s", num_images, ingest.source)


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
    images: Callable[[str], ImageSource], used: Collection[str], checks: ImageChecks
) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield rows of the images, sorted by path: "test/…" before "train/…"."""
    for split, names in _by_split(used).items():
        for name in names:
            if size := checks.size(split, name):
                yield f"{split}/{name}", images(split).read(name), *size


def _by_split(paths: Collection[str]) -> dict[str, list[str]]:
    """Return the names of images by split, both sorted."""
    names: dict[str, list[str]] = {}
    for path in sorted(paths):
        split, _, name = path.partition("/")
        names.setdefault(split, []).append(name)
    return names
