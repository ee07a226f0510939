"""The pages of the data: what a version contains, and what changed between two versions. Both are self-contained."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from srpo_core.artifacts import replacing
from srpo_core.config import ControlWords
from srpo_core.data.changes import Changes
from srpo_core.data.choices import Choice
from srpo_core.data.decoded_images import read_decoded
from srpo_core.data.kept import KeptRecords
from srpo_core.data.statistics import Statistics, lengths, read_statistics
from srpo_core.data.subsets import evenly_spaced
from srpo_core.report.charts import Series, line_chart
from srpo_core.report.data_figures import Figure, Findings, coverage, figures
from srpo_core.report.grid import data_uri
from srpo_core.report.templates import render

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 12
BINS = 20


@dataclass(frozen=True)
class Sample:
    """A prompt with a preferred and a rejected image, as URIs of the page."""

    prompt: str
    split: str
    preferred: str
    rejected: str


def page_path(home: Path, tag: str) -> Path:
    """Return where the page of a version is by default, below the directory of files that are not outputs."""
    return home / "data" / f"{'-'.join(tag.split('/')[1:])}.html"


def write_data_page(
    target: Path, *, source: KeptRecords, tag: str, words: ControlWords, findings: Findings
) -> list[Figure]:
    """Read a data set, write its page to `target`, and return its figures.

    Raises:
        DataError: a record or an image cannot be read.
    """
    statistics = read_statistics(source)
    page = data_page(tag, statistics, words, findings, choose_samples(source))
    with replacing(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return figures(statistics, words, findings)


def data_page(
    tag: str, statistics: Statistics, words: ControlWords, findings: Findings, samples: Sequence[Sample]
) -> str:
    """Render the page of a version; the same version and settings give the same text."""
    return render(
        "data_page.html.j2",
        seeds=(),
        tag=tag,
        statistics=statistics,
        styles=_style_rows(statistics),
        lengths={split: lengths(prompts) for split, prompts in statistics.prompts().items()},
        charts=_length_charts(statistics),
        words=coverage(statistics, words),
        findings=findings,
        samples=samples,
    )


def diff_page(
    old: str, new: str, changes: Mapping[str, Changes], moves: Sequence[tuple[Figure | None, Figure | None]]
) -> str:
    """Render the comparison of two versions."""
    return render("data_diff.html.j2", seeds=(), old=old, new=new, changes=changes, moves=moves)


def choose_samples(source: KeptRecords, count: int = SAMPLES) -> list[Sample]:
    """Choose evenly spaced prompts of the split test, and of train if test has no pairs, with two images each.

    Raises:
        DataError: a record or the images cannot be read.
    """
    for split in ("test", "train"):
        by_prompt: dict[str, Choice] = {}
        for choice in source.choices(split):
            if choice.prompt not in by_prompt and next(choice.pairs(), None):
                by_prompt[choice.prompt] = choice
        if by_prompt:
            return _with_images(source, split, evenly_spaced(list(by_prompt.values()), count))
    return []


def _with_images(source: KeptRecords, split: str, chosen: Sequence[Choice]) -> list[Sample]:
    samples = []
    with ExitStack() as stack:
        images = stack.enter_context(source.images(split))
        for number, choice in enumerate(chosen):
            pairs = list(choice.pairs())
            # another pair for each prompt: pairs may be ordered by the style of their images
            preferred, rejected = (_uri(read_decoded(images, name)) for name in pairs[number % len(pairs)])
            samples.append(Sample(choice.prompt, split, preferred, rejected))
    return samples


def _uri(image: "Image") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_uri(buffer.getvalue())


def _style_rows(statistics: Statistics) -> list[dict[str, Any]]:
    """Count by style: prompts of the benchmark, and records of each split whose prompt is among them."""
    benchmark = statistics.styles()
    names = list(
        dict.fromkeys([*benchmark, *(style for one in statistics.splits.values() for style in one.styles)])
    )
    return [
        {
            "style": name,
            "benchmark": benchmark.get(name, 0),
            **{split: one.styles.get(name, 0) for split, one in statistics.splits.items()},
        }
        for name in names
    ]


def _length_charts(statistics: Statistics) -> list[tuple[str, Markup]]:
    """Draw for each split how many prompts have how many characters."""
    charts = []
    for split, prompts in statistics.prompts().items():
        sizes = list(map(len, prompts))
        if len(set(sizes)) > 1:
            width = max(1, -(-max(sizes) // BINS))
            bins = Counter(size // width * width for size in sizes)
            points = [(float(at), float(bins[at])) for at in range(0, max(sizes) + 1, width)]
            label = f"prompts of {split} by characters, in steps of {width}"
            charts.append(
                (
                    f"{split}: prompts by length",
                    line_chart([Series(split, points)], label=label, x_label="characters"),
                )
            )
    return charts
