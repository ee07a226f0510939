"""The tables that stage ingest leaves and later stages read: prompts, pairs and images, as parquet."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from srpo_core import artifacts
from srpo_core.errors import ArtifactError

if TYPE_CHECKING:
    from PIL import Image

ROWS_PER_SHARD: Final = 4096
_ROWS_PER_GROUP: Final = 65536
# an image is looked up by its group's range of names, so a group is what one look-up reads
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
IMAGE_COLUMNS: Final = pa.schema(
    [("path", pa.string()), ("image", pa.binary()), ("width", pa.int32()), ("height", pa.int32())]
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row of the prompts; style is the benchmark's name for the split test, else empty."""

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
    """Prompts of `train`, `validation` or `test`, in their order; those of `test` by style.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    rows = _read(artifacts.PROMPTS, ds.field("split") == split).to_pylist()
    return [Prompt(row["prompt_id"], row["prompt"], row["split"], row["style"]) for row in rows]


def read_pairs(split: str, limit: int | None = None) -> list[Pair]:
    """Pairs of `train` or `test`; of more than `limit`, that many of the whole table.

    The choice is random but always the same; the order is that of the table.

    Raises:
        ArtifactError: the table is missing or damaged.
    """
    table = _read(artifacts.PAIRS, ds.field("split") == split)
    if limit is not None and limit < len(table):
        # neighbours share their prompt, so the first rows would be pairs of a few prompts
        table = table.take(sorted(Random(0).sample(range(len(table)), limit)))
    return [Pair(**row) for row in table.to_pylist()]


def read_images(paths: Iterable[str]) -> "dict[str, Image.Image]":
    """Decoded RGB images by path. All are held at once: ask for as many as fit into memory.

    Raises:
        ArtifactError: the shards are missing or damaged, or do not hold a path.
    """
    from PIL import Image

    wanted = sorted(set(paths))
    rows = _read(artifacts.IMAGES, ds.field("path").isin(wanted), ["path", "image"]).to_pylist()
    images = {row["path"]: Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows}
    if missing := [path for path in wanted if path not in images]:
        raise ArtifactError(
            f"{artifacts.IMAGES} does not hold {missing[0]!r} ({len(missing)} of {len(wanted)} are missing): "
            "run 'dvc repro --force ingest'"
        )
    return images


def write_rows(
    path: Path, columns: pa.Schema, rows: Iterable[Sequence[Any]], *, rows_per_group: int = _ROWS_PER_GROUP
) -> int:
    """Write a table atomically, holding one row group at a time, and return the number of its rows."""
    written = 0
    rest = iter(rows)
    # images are compressed already, and bounds of their bytes would help no look-up
    encoded = [field.name for field in columns if field.type != pa.binary()]
    compression = {field.name: "zstd" if field.name in encoded else "none" for field in columns}
    with (
        artifacts.replacing(path) as partial,
        pq.ParquetWriter(
            partial, columns, compression=compression, use_dictionary=encoded, write_statistics=encoded
        ) as file,
    ):
        while group := list(islice(rest, rows_per_group)):
            file.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=columns))
            written += len(group)
    return written


def write_images(rows: Iterable[tuple[str, bytes, int, int]]) -> int:
    """Write (path, bytes, width, height), sorted by path, as numbered shards; return the number of rows."""
    written = 0
    rest = iter(rows)
    for number in count():
        first = list(islice(rest, 1))
        if not first:
            break
        written += write_rows(
            artifacts.IMAGES / f"{number:05d}.parquet",
            IMAGE_COLUMNS,
            chain(first, islice(rest, ROWS_PER_SHARD - 1)),
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
