"""Held-out pairs with known answers: the emoji of a prompt's subject is preferred to that of another subject."""

import io
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from srpo_core import artifacts
from srpo_core.data.tables import PAIR_COLUMNS, write_images, write_rows

EMOJI = Path(__file__).resolve().parents[1] / "assets/tiny/data/emoji4.parquet"
SUBJECTS = ("owl", "penguin", "red apple", "rocket", "sunflower", "tiger face")


@cache
def emoji() -> dict[str, bytes]:
    """Return one image file for each of `SUBJECTS`."""
    table = pq.read_table(EMOJI, filters=[("name", "in", SUBJECTS), ("style", "=", "Flat")])
    return {row["name"]: row["image"] for row in table.to_pylist()}


def write_known_pairs() -> None:
    """Write the tables of pairs and images that stage ingest would write, below the working directory."""
    write_images(
        (name, content, *Image.open(io.BytesIO(content)).size) for name, content in sorted(emoji().items())
    )
    names = sorted(emoji())
    rows = [(number, "test", own, own, names[number - 1], "") for number, own in enumerate(names)]
    write_rows(artifacts.PAIRS, PAIR_COLUMNS, rows)
