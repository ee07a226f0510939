"""Check the data that the settings name, without reading all of them."""

from srpo_core.config import Settings
from srpo_core.data.rules import Findings
from srpo_core.data.sources import open_source
from srpo_core.errors import SrpoError


def examine_data(settings: Settings) -> tuple[bool, str]:
    """Return whether the source can be opened in its format, and what is wrong or what was found."""
    ingest = settings.ingest
    try:
        open_source(ingest, Findings(ingest, None))
    except SrpoError as error:
        return False, f"{error}. Set ingest.source, or run 'srpo data' (docs/data.md)"
    return True, f"{ingest.source} ({ingest.format})"
