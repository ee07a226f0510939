"""The format `pairs`: tables of (prompt, image, image, preference), as Pick-a-Pic, HPDv3 and ImageReward have."""

from functools import partial
from pathlib import Path
from typing import Final

from srpo_core.config import IngestSettings
from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import PAIRS, require_columns
from srpo_core.data.sources.packing import copy_tables
from srpo_core.data.sources.source import Source, SourceFormat
from srpo_core.data.sources.table_source import open_tables


def _open(where: Path, ingest: IngestSettings, findings: Findings) -> Source:
    return open_tables(where, ingest, PAIRS, findings)


PAIRS_FORMAT: Final = SourceFormat(
    open=_open,
    collect=partial(copy_tables, with_images=True),
    check_columns=partial(require_columns, PAIRS),
    has_pairs=True,
    has_images=True,
    layout="a parquet, JSON, JSON lines or CSV file or a webdataset tar of image pairs, or a directory of them",
)
