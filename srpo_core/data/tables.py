"""The parquet tables that stage ingest writes and later stages read: prompts, pairs, captions and images."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from srpo_core import artifacts
from srpo_core.data.decoding import read_image
from srpo_core.data.subsets import sampled_places
from srpo_core.errors import ArtifactError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

NUM_EXAMPLES: Final = 16  # pairs that scorers are asked questions with known answers about
ROWS_PER_FILE: Final = 4096
_ROWS_PER_GROUP: Final = 65536
# a look-up finds an image by its row group's range of names and reads the whole group
_IMAGES_PER_GROUP: Final = 128

PROMPT_COLUMNS: Final = pa.schema(
    [("prompt_id", pa.int64()), ("prompt", pa.string()), ("split", pa.string()), ("style", pa.string())]
)
PAIR_COLUMNS: Final = pa.schema(
    [
        ("pair_id", pa.int64()),
        ("split", pa.string()),
        ("prompt", pa.string()),
        ("preferred", pa.string()),
        ("rejected", pa.string()),
        ("style", pa.string()),
    ]
)
CAPTION_COLUMNS: Final = pa.schema([("split", pa.string()), ("prompt", pa.string()), ("image", pa.string())])
IMAGE_COLUMNS: Final = pa.schema(
    [("path", pa.string()), ("image", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of the prompts. In the split test, style is the name of the benchmark list; else it is empty."""

    prompt_id: int
    text: str
    split: str
    style: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A row of the pairs; preferred and rejected are paths of images."""

    pair_id: int
    split: str
    prompt: str
    preferred: str
    rejected: str
    style: str


def read_prompts(split: str) -> list[Prompt]:
    """Read the prompts of `train`, `validation` or `test` in the table's order; those of `test` are sorted by style.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    rows = _read(artifacts.PROMPTS, ds.field("split") == split).to_pylist()
    return [Prompt(row["prompt_id"], row["prompt"], row["split"], row["style"]) for row in rows]


def read_pairs(split: str, limit: int | None = None) -> list[Pair]:
    """Read the pairs of `train` or `test`; if there are more than `limit`, a sample of that size.

    The sample is random but always the same, in the order of the table.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    table = _read(artifacts.PAIRS, ds.field("split") == split)
    if limit is not None and limit < len(table):
        table = table.take(sampled_places(len(table), limit))
    return [Pair(**row) for row in table.to_pylist()]


def read_real_images(split: str) -> dict[str, str]:
    """Return the path of one image of each prompt of `train` or `test`: the preferred one of its first pair, or its own.

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    pairs = _read(artifacts.PAIRS, ds.field("split") == split, ["prompt", "preferred"])
    first = pairs.group_by("prompt", use_threads=False).aggregate([("preferred", "first")])
    images = dict(zip(first["prompt"].to_pylist(), first["preferred_first"].to_pylist(), strict=True))
    if artifacts.CAPTIONS.exists():
        for row in _read(artifacts.CAPTIONS, ds.field("split") == split).to_pylist():
            images.setdefault(row["prompt"], row["image"])
    return images


def read_examples(count: int) -> "list[tuple[str, Tensor, Tensor]]":
    """Read the images of `choose_examples`: prompts with a preferred and a rejected image each, (1, 3, H, W) in [0, 1].

    Raises:
        ArtifactError: a table is missing or damaged.
    """
    pairs = choose_examples(count)
    if not pairs:
        return []
    images = read_images({path for pair in pairs for path in (pair.preferred, pair.rejected)})
    return [
        (pair.prompt, to_tensor(images[pair.preferred]), to_tensor(images[pair.rejected])) for pair in pairs
    ]


def choose_examples(count: int) -> list[Pair]:
    """Choose pairs of the split test, each of another prompt: at most `count`, spread over the table; none without pairs.

    From one prompt to the next it is another of its pairs, since the pairs of a prompt may be ordered by the style of
    their images.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    by_prompt: dict[str, list[Pair]] = {}
    for pair in read_pairs("test"):
        by_prompt.setdefault(pair.prompt, []).append(pair)
    groups = list(by_prompt.values())
    chosen = groups[:: max(1, len(groups) // count)][:count]
    return [own[number % len(own)] for number, own in enumerate(chosen)]


def read_images(paths: Iterable[str]) -> "dict[str, Image.Image]":
    """Read RGB images by path, as people see them (`read_image`). All of them must fit into memory.

    Raises:
        ArtifactError: the table is missing or damaged, or lacks a path.
    """
    wanted = sorted(set(paths))
    rows = _read(artifacts.IMAGES, ds.field("path").isin(wanted), ["path", "image"]).to_pylist()
    images = {row["path"]: _decoded(row["path"], row["image"]) for row in rows}
    if missing := [path for path in wanted if path not in images]:
        raise ArtifactError(
            f"{artifacts.IMAGES} has no image {missing[0]!r} ({len(missing)} of {len(wanted)} are missing): "
            "run 'dvc repro --force ingest'"
        )
    return images


def _decoded(path: str, content: bytes) -> "Image.Image":
    try:
        return read_image(content)
    except ValueError as error:
        raise ArtifactError(
            f"{artifacts.IMAGES}: image {path!r} cannot be decoded ({error}): run 'dvc repro --force ingest'"
        ) from None


def to_tensor(image: "Image.Image") -> "Tensor":
    """Convert an RGB image to (1, 3, H, W) in [0, 1]."""
    from torchvision.transforms import functional

    tensor: Tensor = functional.to_tensor(image)
    return tensor[None]


def write_rows(
    path: Path, columns: pa.Schema, rows: Iterable[Sequence[Any]], *, rows_per_group: int = _ROWS_PER_GROUP
) -> int:
    """Write a table atomically, with one row group in memory at a time, and return the number of rows."""
    written = 0
    rest = iter(rows)
    with _writer(path, columns) as file:
        while group := list(islice(rest, rows_per_group)):
            file.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=columns))
            written += len(group)
    return written


@contextmanager
def _writer(path: Path, columns: pa.Schema) -> Iterator[pq.ParquetWriter]:
    # images are compressed already, and statistics of their bytes do not help any look-up
    encoded = [field.name for field in columns if field.type != pa.binary()]
    compression = {field.name: "zstd" if field.name in encoded else "none" for field in columns}
    with (
        artifacts.replacing(path) as partial,
        pq.ParquetWriter(
            partial, columns, compression=compression, use_dictionary=encoded, write_statistics=encoded
        ) as file,
    ):
        yield file


def write_pairs(tables: Iterable[pa.Table]) -> int:
    """Write tables of (split, prompt, preferred, rejected) as the table of pairs, and return the number of rows."""
    columns = ["pair_id", *PAIR_COLUMNS.names[1:]]
    written = 0
    with _writer(artifacts.PAIRS, PAIR_COLUMNS) as file:
        for group in _groups(tables):
            ids = pa.array(range(written, written + len(group)), pa.int64())
            styles = pa.array([""] * len(group), pa.string())
            whole = group.append_column("pair_id", ids).append_column("style", styles).select(columns)
            file.write_table(whole.cast(PAIR_COLUMNS).combine_chunks())
            written += len(group)
    return written


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Regroup tables to row groups of equal length, except for the last."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while len(waiting) >= _ROWS_PER_GROUP:
            yield waiting.slice(0, _ROWS_PER_GROUP)
            waiting = waiting.slice(_ROWS_PER_GROUP)
    if waiting is not None and len(waiting):
        yield waiting


def write_images(rows: Iterable[tuple[str, bytes, int, int]]) -> int:
    """Write rows (path, bytes, width, height), sorted by path, as numbered files; return the number of rows."""
    written = 0
    rest = iter(rows)
    for number in count():
        first = list(islice(rest, 1))
        if not first:
            break
        written += write_rows(
            artifacts.IMAGES / f"{number:05d}.parquet",
            IMAGE_COLUMNS,
            chain(first, islice(rest, ROWS_PER_FILE - 1)),
            rows_per_group=_IMAGES_PER_GROUP,
        )
    return written


def _read(path: Path, keep: ds.Expression, columns: list[str] | None = None) -> pa.Table:
    try:
        return ds.dataset(artifacts.require(path), format="parquet").to_table(columns=columns, filter=keep)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(
            f"{path} is damaged ({str(error).splitlines()[0]}): run 'dvc repro --force ingest'"
        ) from None
