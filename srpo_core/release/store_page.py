"""Write the page of a store, `index.html`, from its manifests and aliases; publications and moves do so at their end."""

import base64
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from srpo_core.artifacts import replacing
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.layout import GRID, REPORT
from srpo_core.release.manifest_rows import production_of, release_row
from srpo_core.release.references import CANDIDATE, PRODUCTION, REJECTED
from srpo_core.report.store_page import StorePage, detailed_rows, render_store_page
from srpo_core.report.store_rows import ModelPart, MoveRow, ReleaseRow
from srpo_core.storage import PAGE, Store, is_version, model_of

# Of a refused write: the process whose write came between may have read the store before this process changed it. It
# replaced a page that this process has seen before its second attempt, so whoever is faster then has read the change.
ATTEMPTS: Final = 2
REQUESTS: Final = 16  # at once
THUMBNAIL: Final = (560, 420)  # pixels
LARGEST_IMAGE: Final = 64_000_000  # bytes of the file, and pixels
SHOWN: Final = (GRID, REPORT)

Manifests = Mapping[str, Mapping[str, Any] | StoreError]
log = getLogger(__name__)


def rebuild_page(store: Store, manifests: Manifests | None = None) -> None:
    """Write the store's page anew. It describes what has happened already, so a failure is only logged, in one line.

    At least one of several processes that do so at once has read what all of them changed, and its page stays.

    manifests: those that the caller has read already.
    """
    try:
        for _ in range(ATTEMPTS):
            token = store.page()
            page = store_page(store, manifests=manifests)
            if store.write_page(page.encode(), token):
                return
    except Exception as error:  # noqa: BLE001  # what was published or moved stays so, whatever is wrong with a page
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning(
            "%s of %s was not written (%s); the next publication, promotion, rollback or 'srpo gc --delete' writes it",
            PAGE,
            store.uri,
            cause,
        )


def store_page(store: Store, *, links: str | None = "", manifests: Manifests | None = None) -> str:
    """Return the page of a store.

    links: what leads from the page to the store, to be followed by the path of a file in it; None: no links.
    manifests: those that the caller has read already; others are read, several at once.

    Raises:
        StoreError: the store cannot be read. Manifests, aliases and images that cannot be read are shown as such.
    """
    written_at = datetime.now(UTC).isoformat()  # with its microseconds no two pages are equal
    aliases = _read_aliases(store)
    versions = store.versions()
    known = {version: manifests[version] for version in versions if manifests and version in manifests}
    known |= dict(store.manifests([version for version in versions if version not in known]))
    names = defaultdict[str, list[str]](list)
    for alias, (target, _, _) in aliases.items():
        names[target or ""].append(alias.partition("/")[2])
    grids = {version: one["files"].get(GRID) for version, one in known.items() if isinstance(one, Mapping)}
    rows = defaultdict[str, list[ReleaseRow]](list)
    for version in filter(is_version, versions):
        row = _row(store, version, known[version], tuple(sorted(names[version])), links)
        rows[model_of(version)].append(row)
    models = sorted({*rows, *(alias.partition("/")[0] for alias in aliases)})
    page = StorePage(
        store=_name_of(store),
        written_at=written_at,
        models=[_model(store, name, rows[name], aliases, grids) for name in models],
        oddities=[f"{name} is no version: it is left out" for name in versions if not is_version(name)],
    )
    return str(render_store_page(page))


def write_page(store: Store, target: Path, *, manifests: Manifests | None = None) -> None:
    """Write the page of a store to a file of your own; it links to files of a store in a directory, not of a bucket.

    Raises:
        StoreError: the store cannot be read.
        ConfigError: the file cannot be written.
    """
    links = None if "://" in store.uri else os.path.relpath(store.uri, target.absolute().parent) + "/"
    page = store_page(store, links=None if links is None else quote(links), manifests=manifests)
    try:
        with replacing(target) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error}): name another file") from None


Alias = tuple[str | None, list[MoveRow], str]  # version, moves, fault


def _read_aliases(store: Store) -> dict[str, Alias]:
    found: dict[str, Alias] = {}
    for name in store.aliases():
        try:
            value, _ = store.alias(name)
            found[name] = (*production_of(value or {"version": None, "history": []}), "")
        except (StoreError, ValueError) as error:
            found[name] = (None, [], f"The alias {name} cannot be read: {_without_place(store, error)}")
    return found


def _row(
    store: Store,
    version: str,
    manifest: Mapping[str, Any] | StoreError,
    aliases: tuple[str, ...],
    links: str | None,
) -> ReleaseRow:
    if isinstance(manifest, StoreError):
        return ReleaseRow(version, _without_place(store, manifest), aliases=aliases)
    row = release_row(version, manifest, aliases)
    if row.fault or links is None:
        return row
    files = manifest["files"]
    keys = {name: store.key_of(version, name, files[name]["sha256"]) for name in SHOWN if name in files}
    return replace(row, links={name: links + quote(key) for name, key in keys.items()})


def _model(
    store: Store,
    name: str,
    rows: Sequence[ReleaseRow],
    aliases: Mapping[str, Alias],
    grids: Mapping[str, Any],
) -> ModelPart:
    production, moves, _ = aliases.get(f"{name}/{PRODUCTION}", (None, [], ""))
    ordered = sorted(rows, key=lambda row: (row.created_at, row.version), reverse=True)
    shown = detailed_rows(ordered, production)
    with ThreadPoolExecutor(REQUESTS) as pool:
        images = dict(
            zip(
                (row.version for row in shown),
                pool.map(lambda row: with_image(store, row, grids[row.version]), shown),
                strict=True,
            )
        )
    return ModelPart(
        name,
        [images.get(row.version, row) for row in ordered],
        production,
        moves,
        [fault for alias, (_, _, fault) in aliases.items() if fault and alias.partition("/")[0] == name],
        [move for move in aliases.get(f"{name}/{CANDIDATE}", (None, [], ""))[1] if move.kind == REJECTED],
    )


def with_image(store: Store, row: ReleaseRow, grid: Mapping[str, Any] | None) -> ReleaseRow:
    """Add a small image of before and after, or why there is none; grid: the entry of its file in the manifest."""
    if grid is None:
        return row
    if grid["bytes"] > LARGEST_IMAGE:
        return replace(row, image_fault=f"{GRID} is too large to be shown")
    try:
        data = b"".join(store.read(row.version, GRID))
        if hashlib.sha256(data).hexdigest() != grid["sha256"]:
            return replace(row, image_fault=f"{GRID} does not have its SHA-256: run srpo verify")
        return replace(row, image=_thumbnail(data))
    except StoreError as error:
        return replace(row, image_fault=_without_place(store, error))
    except (OSError, ValueError, SyntaxError) as error:
        return replace(row, image_fault=f"{GRID} cannot be shown: {error}"[:200])


def _thumbnail(png: bytes) -> str:
    """Return a PNG as the data URI of a small WebP.

    Raises:
        OSError, SyntaxError, ValueError: it is no PNG, or too large.
    """
    from PIL import Image

    try:
        opened = Image.open(io.BytesIO(png), formats=("PNG",))
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
    with opened as image:
        if image.width * image.height > LARGEST_IMAGE:
            raise ValueError(f"it has {image.width}×{image.height} pixels")
        small = image.convert("RGB")
    small.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=70, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _name_of(store: Store) -> str:
    """Return the URI of a bucket, or the last part of the path of a directory, which is mounted at different places."""
    return store.uri if "://" in store.uri else Path(store.uri).name


def _without_place(store: Store, error: Exception) -> str:
    """Return an error without the path of the store on this machine, which is of no use to a reader elsewhere."""
    return str(error).replace(f"{store.uri}/", "").replace(store.uri, _name_of(store))
