"""Formats of data sets. To add one: a module beside `hpdv2.py` and a line in `SOURCES`."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.config import IngestSettings
from srpo_core.data.rules import Findings
from srpo_core.data.sources.captions import IMAGES_FORMAT
from srpo_core.data.sources.hpdv2 import HPDV2
from srpo_core.data.sources.pairs import PAIRS_FORMAT
from srpo_core.data.sources.prompts import PROMPTS_FORMAT
from srpo_core.data.sources.refusals import refuse_elsewhere, require_local
from srpo_core.data.sources.source import Source, SourceFormat
from srpo_core.errors import pick

__all__ = [
    "SOURCES",
    "Source",
    "SourceFormat",
    "open_source",
    "refuse_elsewhere",
    "require_source",
    "source_format",
]

SOURCES: Final[Mapping[str, SourceFormat]] = MappingProxyType(
    {"hpdv2": HPDV2, "pairs": PAIRS_FORMAT, "prompts": PROMPTS_FORMAT, "images": IMAGES_FORMAT}
)


def source_format(name: str) -> SourceFormat:
    """Look up a format by its name in the settings.

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    return pick(SOURCES, name, "format of ingest.format")


def open_source(ingest: IngestSettings, findings: Findings) -> Source:
    """Open the data set of `ingest.source` in the format `ingest.format`; problems of its records go to `findings`.

    Raises:
        ConfigError: the format is unknown.
        DataError: the source is missing or has another layout.
    """
    return source_format(ingest.format).open(require_source(ingest.source, ingest.format), ingest, findings)


def require_source(source: str | Path, format_name: str) -> Path:
    """Return the path of a source that a format can open, as far as names and first bytes of its files tell.

    Raises:
        ConfigError: the format is unknown.
        DataError: see `require_local`.
    """
    return require_local(str(source), source_format(format_name).layout)
