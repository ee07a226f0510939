"""Where people read reports and grids: those of a run and of a data version, which the store keeps too, and of a release.

With `SRPO_STORE_URL`, the address under which the files of the store are served, a link opens in a browser on any machine.
Without it, it is the URI in a bucket, or the path in the store's directory.
"""

import os
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from srpo_core.credentials import mask_credentials
from srpo_core.errors import ConfigError
from srpo_core.release.layout import GRID, REPORT
from srpo_core.storage import Store, report_key

STORE_URL: Final = "SRPO_STORE_URL"
DATA_PAGE: Final = "data.html"


def store_url() -> str | None:
    """Return the address of `SRPO_STORE_URL` without a slash at its end, or None if it is unset or blank.

    Raises:
        ConfigError: it is no address of HTTP, or has a user, a query or a fragment.
    """
    given = os.environ.get(STORE_URL, "").strip()
    if not given:
        return None
    try:
        parts = urlsplit(given)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets without an end, or a port that is no number
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment or not given.isprintable():
        raise ConfigError(
            f"{STORE_URL}={mask_credentials(given)}: write the address under which the store's index.html is served, such "
            "as https://releases.example.org/srpo, without user, password and query"
        )
    return given.rstrip("/")


def link_to(store: Store, key: str) -> str:
    """Return the address of a file of a store, or else its URI or path. key: its path inside the store."""
    address = store_url()
    return f"{store.uri}/{key}" if address is None else f"{address}/{quote(key)}"


def release_links(store: Store, version: str) -> dict[str, str]:
    """Return the links to grid and report of a release; one without them has none."""
    files = store.manifest(version)["files"]
    return {
        name: link_to(store, store.key_of(version, file, files[file]["sha256"]))
        for name, file in (("grid", GRID), ("report", REPORT))
        if file in files
    }


def keep_report(store: Store, run_id: str, report: Path, grid: Path) -> dict[str, str]:
    """Copy the report and the grid of a run to the store, and return the links to them. A missing grid is left out.

    Raises:
        StoreError: the store cannot be written to.
    """
    files = {"grid": (GRID, grid), "report": (REPORT, report)}
    found = {name: (file, path) for name, (file, path) in files.items() if path.is_file()}
    store.reports.keep(run_id, dict(found.values()))
    return {name: link_to(store, f"{report_key(run_id)}/{file}") for name, (file, _) in found.items()}


def keep_data_page(store: Store, tag: str, page: Path) -> str:
    """Copy the page of a data version to the store, and return the link to it.

    Raises:
        StoreError: the store cannot be written to.
    """
    name = tag.replace("/", "-")  # data-NAME-HASH, which no run is called
    store.reports.keep(name, {DATA_PAGE: page})
    return link_to(store, f"{report_key(name)}/{DATA_PAGE}")


def in_markdown(link: str) -> str:
    """Write a link in Markdown; a path, or a URI that no browser opens, as code."""
    return f"[{link}](<{link}>)" if link.startswith(("http://", "https://")) else f"`{link}`"
