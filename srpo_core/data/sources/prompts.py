"""The format `prompts`: prompts alone, in text files, JSON lists or a column of tables."""

from functools import partial
from pathlib import Path
from typing import Final

from srpo_core.config import IngestSettings
from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import PROMPTS, require_columns
from srpo_core.data.sources.packing import copy_tables
from srpo_core.data.sources.rows import SUFFIXES, visible_files
from srpo_core.data.sources.source import Source, SourceFormat
from srpo_core.data.sources.table_source import open_tables


def _open(where: Path, ingest: IngestSettings, findings: Findings) -> Source:
    return open_tables(where, ingest, PROMPTS, findings, SUFFIXES)


def _files(source: Path) -> list[Path]:
    return [path for path in visible_files(source) if path.suffix in SUFFIXES]


PROMPTS_FORMAT: Final = SourceFormat(
    open=_open,
    collect=partial(copy_tables, with_images=False),
    check_columns=partial(require_columns, PROMPTS),
    has_pairs=False,
    has_images=False,
    layout="a text file with a prompt per line, a JSON list, or a parquet, JSON lines or CSV file, or a directory of them",
    files=_files,
)
