"""Stage ingest: HPD prompts, preference pairs and images, checked, as parquet."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from srpo_core import artifacts
from srpo_core.config import IngestSettings
from srpo_core.data import expectations, images, splits, tables
from srpo_core.data.choices import Place
from srpo_core.data.decoding import read_image
from srpo_core.data.sources import Source, open_source, source_format
from srpo_core.errors import DataError
from srpo_core.prompts import normal_form
from srpo_core.runtime.progress import with_progress

_log = logging.getLogger(__name__)


@dataclass
class _Used:
    """The prompts and images that the records of one split use, each with the place of its first record."""

    prompts: dict[str, Place] = field(default_factory=dict)
    images: dict[str, Place] = field(default_factory=dict)
    captions: list[tuple[str, str, str]] = field(default_factory=list)  # rows (split, prompt, image)


def run(*, seed: int, ingest: IngestSettings) -> None:
    """Read `ingest.source` in its format; write prompts, pairs, images and the results of the checks.

    Raises:
        ConfigError: the format is unknown.
        DataError: a file, a record, an image or a table breaks a rule.
    """
    source = open_source(ingest)
    shutil.rmtree(artifacts.PROMPTS.parent, ignore_errors=True)
    used = {"train": _Used(), "test": _Used()}
    num_pairs = tables.write_rows(artifacts.PAIRS, tables.PAIR_COLUMNS, _pair_rows(source, used))
    if captions := [row for names in used.values() for row in names.captions]:
        tables.write_rows(artifacts.CAPTIONS, tables.CAPTION_COLUMNS, captions)
    for split, names in used.items():
        with source.images(split) as stored:
            images.require_images(stored, names.images)
    prompts = list(_prompt_rows(source, used["train"].prompts, ingest.validation_share, seed))
    tables.write_rows(artifacts.PROMPTS, tables.PROMPT_COLUMNS, prompts)
    split_names = ["train", "validation", "test"] if ingest.validation_share else ["train", "test"]
    checks = _check_tables(split_names, pairs=source_format(ingest.format).has_pairs)
    num_images = tables.write_images(_image_rows(source, used))
    artifacts.write_json(artifacts.VALIDATION, checks)
    _log.info("%d prompts, %d pairs, %d images from %s", len(prompts), num_pairs, num_images, ingest.source)


def _pair_rows(source: Source, used: dict[str, _Used]) -> Iterator[tuple[Any, ...]]:
    """Yield rows of the pairs, and record in `used` every prompt and image of the records.

    A record of test whose prompt is also in train, in any spelling (`normal_form`), is not held out and is skipped.
    """
    pair_id = count()
    known: set[str] = set()
    for split, names in used.items():
        skipped = 0
        for choice in source.choices(split):
            if split == "test" and normal_form(choice.prompt) in known:
                skipped += 1
                continue
            if split == "train":
                known.add(normal_form(choice.prompt))
            names.prompts.setdefault(choice.prompt, choice.place)
            for name in choice.images:
                names.images.setdefault(name, choice.place)
            if len(choice.images) == 1:
                names.captions.append((split, choice.prompt, f"{split}/{choice.images[0]}"))
            for preferred, rejected in choice.pairs():
                yield next(pair_id), split, choice.prompt, f"{split}/{preferred}", f"{split}/{rejected}", ""
        if skipped:
            _log.warning("skipped %d records of the split test whose prompts are in the split train", skipped)


def _prompt_rows(
    source: Source, train: dict[str, Place], validation_share: float, seed: int
) -> Iterator[tuple[int, str, str, str]]:
    """Yield rows of the prompts: those of the split train in order of first appearance, then the benchmark."""
    benchmark = source.benchmark(train)
    held_out = splits.held_out_prompts(train, validation_share, seed)
    prompt_id = count()
    for prompt in train:
        yield next(prompt_id), prompt, "validation" if prompt in held_out else "train", ""
    for entry in benchmark:
        yield next(prompt_id), entry.prompt, "test", entry.style


def _check_tables(split_names: list[str], *, pairs: bool) -> dict[str, Any]:
    import pandas as pd

    checks = {"prompts": expectations.check_prompts(pd.read_parquet(artifacts.PROMPTS), split_names)}
    if pairs:
        checks["pairs"] = expectations.check_pairs(pd.read_parquet(artifacts.PAIRS))
    return checks


def _image_rows(source: Source, used: dict[str, _Used]) -> Iterator[tuple[str, bytes, int, int]]:
    """Yield rows of the images, sorted by path: "test/…" before "train/…"."""
    for split in sorted(used):
        records = used[split].images
        with source.images(split) as stored:
            for name in with_progress(sorted(records), f"images of {split}"):
                content = stored.read(name)
                try:
                    width, height = read_image(content).size
                except ValueError as error:
                    file, record = records[name]
                    raise DataError(
                        f"{stored.where}: image {name!r} cannot be decoded ({error}); it is used in {file}, record {record}"
                    ) from None
                yield f"{split}/{name}", content, width, height
