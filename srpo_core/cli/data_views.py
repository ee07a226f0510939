"""What `srpo data show`, `diff` and `agreement` read of a version, and compute."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from srpo_core.artifacts import replacing
from srpo_core.config import PARAMS_FILE, Settings, load_settings
from srpo_core.data.annotators import Share
from srpo_core.data.changes import (
    Changes,
    benchmark_changes,
    named_by_content,
    record_changes,
    replaced_images,
)
from srpo_core.data.choices import SPLITS
from srpo_core.data.kept import KeptRecords
from srpo_core.data.statistics import (
    BENCHMARK,
    read_statistics,
)
from srpo_core.prompts import normal_form
from srpo_core.report.data_figures import Figure, figures, moved
from srpo_core.report.data_page import diff_page, page_path, write_data_page
from srpo_core.workspace.data_settings import noted_ingest, open_noted
from srpo_core.workspace.data_view import DataVersion, open_version

if TYPE_CHECKING:
    pass

ALL: Final = "all"
# files without images: if no other file differs between two versions, no image does
_LISTS: Final = (".json", ".jsonl", ".txt", ".csv")


def show_version(tag: str, page: Path | None) -> tuple[Path, list[Figure]]:
    """Write the page of a version; return where, and the figures.

    Raises:
        ConfigError: there is no such version, or params.yaml is not valid.
        DataError: a record or an image cannot be read.
        StoreError: neither DVC's cache nor the remote has all of it.
    """
    settings = load_settings(PARAMS_FILE)
    with open_version(Path.cwd(), tag) as version:
        target = page or page_path(version.home, tag)
        found = write_data_page(
            target,
            source=_source(version, settings),
            tag=tag,
            words=settings.control_words,
            findings=version.findings,
        )
    return target, found


def compare_versions(
    old: str, new: str, page: Path | None
) -> tuple[dict[str, Changes], list[tuple[Figure | None, Figure | None]]]:
    """Compare two versions, and write the comparison as a page if a path is given. Raises as `show_version`."""
    settings = load_settings(PARAMS_FILE)
    with ExitStack() as stack:
        versions = [stack.enter_context(open_version(Path.cwd(), tag)) for tag in (old, new)]
        first, second = (_source(version, settings) for version in versions)
        images_differ = _files_with_images(versions[0]) != _files_with_images(versions[1])
        changes = {
            split: _split_changes(first, second, split, images_differ=images_differ) for split in SPLITS
        }
        changes[BENCHMARK] = benchmark_changes(first.benchmark(), second.benchmark())
        before, after = (
            figures(read_statistics(source), settings.control_words, version.findings)
            for source, version in zip((first, second), versions, strict=True)
        )
    moves = moved(before, after)
    if page is not None:
        with replacing(page) as partial:
            partial.write_text(diff_page(old, new, changes, moves), encoding="utf-8")
    return changes, moves


def reward_agreement(tag: str, max_pairs: int | None) -> list[tuple[str, str, Share]]:
    """Measure how often each reward of params.yaml prefers what people preferred: rows (reward, style, share).

    If the reward is the sum of several, it is the first, named `all`; its parts follow. So do styles of one reward.

    Raises:
        DataError: the split test has no pairs.
        ConfigError, StoreError: as `show_version`.
    """
    from srpo_core.cli.pair_scores import PairScorer
    from srpo_core.data.intervals import share_interval

    settings = load_settings(PARAMS_FILE)
    scorer = PairScorer(settings, max_pairs)
    with open_version(Path.cwd(), tag) as version:
        ingest = noted_ingest(version.path, settings.ingest, version.ingest)
        pairs, agreed = scorer.score(tag, ingest, version.findings)
    rows = []
    for name, own in agreed.items():
        for style in [ALL, *sorted({pair.style for pair in pairs})]:
            chosen = [
                (one, normal_form(pair.prompt))
                for one, pair in zip(own, pairs, strict=True)
                if style in {ALL, pair.style}
            ]
            hits, prompts = [one for one, _ in chosen], [prompt for _, prompt in chosen]
            share = Share(sum(hits) / len(hits), *share_interval(hits, prompts), len(hits))
            rows.append((_reward_name(name, settings), style, share))
    return rows


def _split_changes(old: KeptRecords, new: KeptRecords, split: str, *, images_differ: bool) -> Changes:
    if not images_differ:
        return record_changes(old.choices(split), new.choices(split), set())
    first, second = (named_by_content(source, split) for source in (old, new))
    return record_changes(first, second, replaced_images(old, new, split))


def _reward_name(part: str, settings: Settings) -> str:
    if part:
        return part
    return "reward" if len(settings.rewards) > 1 else settings.rewards[0].scorer


def _source(version: DataVersion, settings: Settings) -> KeptRecords:
    return open_noted(version.path, settings.ingest, version.ingest, version.findings)


def _files_with_images(version: DataVersion) -> Mapping[str, str]:
    return {path: md5 for path, md5 in version.files.items() if not path.endswith(_LISTS)}
