"""Publish the results of a run as an immutable version, and withdraw a publication."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, Settings, load_settings
from srpo_core.gates import require_passed
from srpo_core.quantizers import LORA_FORMAT
from srpo_core.release.aliases import move_alias
from srpo_core.release.card import generation_call, model_card
from srpo_core.release.comfyui import copy_with_workflow, workflow_text
from srpo_core.release.gc import remove_unprotected
from srpo_core.release.layout import (
    CARD,
    GGUF_WORKFLOW,
    GRID,
    REPORT,
    TRANSFORMER,
    WORKFLOW,
    checkpoint_file,
    descriptive_files,
    format_files,
    gguf_file,
    pipeline_class,
    release_files,
    require_existing,
)
from srpo_core.release.provenance import environment, git_state, origins, require_reproduced, version_of
from srpo_core.release.references import CANDIDATE, read_alias
from srpo_core.release.signing import sign_release
from srpo_core.release.store_page import rebuild_page
from srpo_core.release.trust import release_state, require_signer, trust_here
from srpo_core.release.verdict import require_recomputed
from srpo_core.report.formats import with_formats
from srpo_core.runtime.costs import RunCost
from srpo_core.runtime.progress import with_progress
from srpo_core.storage import Store, content_digest, model_of, require_conditions, version_key

SCHEMA_VERSION: Final = 2
# what a release contains or is judged by, as dvc.lock names it
RECORDED: Final = (
    artifacts.EMBEDDINGS,
    artifacts.SELECTION.parent,
    artifacts.FIGURES,
    artifacts.EVALUATION_SUMMARY,
    artifacts.DECISION,
    artifacts.REPORT.parent,
    artifacts.QUANTIZED.parent,
)

log = getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """The outcome of a publication, as `withdraw` needs it.

    uri: the directory of the release, or its URI; created: False if the version existed already;
    alias: `<model>/<name>`; previous: the version that the alias pointed to before, or None.
    """

    version: str
    uri: str
    created: bool
    alias: str
    previous: str | None


def publish(
    store: Store,
    *,
    root: Path = Path(),
    alias: str = CANDIDATE,
    why: str = "published",
    who: str | None = None,
    cost: RunCost | None = None,
) -> Published:
    """Publish the run in `root` as a version and point its model's `alias` to it. Repeating it changes nothing.

    who: recorded in the history of the alias, by default the user of this process.
    cost: what the stages cost when they ran, recorded in the manifest.

    Raises:
        GateError: the gate refused the model, or its figures and rules do.
        ArtifactError: a file or a licence text is missing, differs from what dvc.lock records, or is a verdict that
            does not follow from the figures.
        StoreError: the store is full, read-only, unreachable, or has other content under this version.
    """
    require_passed(artifacts.read_json(require_existing(root, artifacts.DECISION)))
    settings = load_settings(root / PARAMS_FILE)
    require_reproduced(root, (Path(settings.model.path), *RECORDED))
    require_recomputed(root, settings)
    version = version_of(settings.release.name, root)
    require_signer(trust_here())
    with TemporaryDirectory(prefix="srpo-card-") as scratch:
        files, manifest = _assemble(root, settings, version, Path(scratch))
        if cost is not None:
            manifest["cost"] = cost.model_dump(mode="json")
        require_conditions(store, accepted=settings.release.unconditional_store)
        created = store.publish(version, files, manifest)
    if not created:
        _warn_if_descriptions_differ(store.manifest(version)["files"], manifest["files"], version)
    if sign_release(store, version):
        log.info("%s is %s", version, release_state(store, version, store.manifest(version), trust_here()))
    log.info("%s %s %s", version, "published to" if created else "is already in", store.uri)
    name = f"{model_of(version)}/{alias}"
    previous = move_alias(store, name, version, why=why, who=who)
    rebuild_page(store)
    local = store.local(version)
    uri = f"{store.uri}/{version_key(version)}" if local is None else str(local)
    return Published(version=version, uri=uri, created=created, alias=name, previous=previous)


def withdraw(store: Store, published: Published) -> None:
    """Undo a publication: move the alias back, and remove the version if this publication created it.

    An alias that was moved again since then is left alone, and a version that is protected by now is kept.
    """
    alias = read_alias(store, published.alias)
    if alias.version == published.version != published.previous:
        move_alias(store, published.alias, published.previous, why=f"{published.version} was withdrawn")
    if published.created:
        remove_unprotected(store, [published.version])
    rebuild_page(store)


def _warn_if_descriptions_differ(
    published: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], version: str
) -> None:
    """Warn that the existing version keeps its old descriptive files, so that an edited card is not taken for published."""
    names = sorted(published.keys() | now.keys())
    other = [
        name for name in names if published.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
    ]
    if other:
        log.warning(
            "%s exists and a version never changes: your current %s differ from the published ones and were not "
            "published. To publish them, set another release.name",
            version,
            ", ".join(other),
        )


def _assemble(
    root: Path, settings: Settings, version: str, scratch: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Return the files of a release by name, and its manifest; files made here are written to `scratch`."""
    decision = artifacts.read_json(require_existing(root, artifacts.DECISION))
    proof = artifacts.read_json(require_existing(root, artifacts.PROOF))
    files = release_files(root, settings, proof)
    pipeline = pipeline_class(root, settings)
    config = artifacts.read_json(files[f"{TRANSFORMER}/config.json"])
    card = model_card(version, settings, pipeline=pipeline, decision=decision, proof=proof, config=config)
    files[CARD] = scratch / CARD
    files[CARD].write_text(card, encoding="utf-8")
    page = files[REPORT].read_text(encoding="utf-8")
    files[REPORT] = scratch / REPORT
    files[REPORT].write_text(with_formats(page, proof), encoding="utf-8")
    formats = {name: sorted(released.values()) for name, released in format_files(settings, proof).items()}
    call = generation_call(settings, proof)
    files |= _workflows(require_existing(root, artifacts.GRID), formats, call, scratch)
    entries = {
        name: {"sha256": artifacts.sha256(path), "bytes": path.stat().st_size}
        for name, path in with_progress(files.items(), "hash file")
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "content": content_digest(
            entries, entries.keys() - descriptive_files(settings.release.license_files)
        ),
        "files": entries,
        "formats": formats | _lora(proof),
        "git": git_state(root),
        "lineage": origins(root, settings),
        "environment": environment(root),
        "decision": decision,
        "proof": proof,
        "evaluation": artifacts.read_json(require_existing(root, artifacts.EVALUATION_SUMMARY)),
        "pipeline": pipeline,
        "call": call,
    }
    return files, manifest


def _lora(proof: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the LoRA as a format, if there is one: it can be pulled, but has no error figures of its own."""
    return {LORA_FORMAT: [artifacts.LORA_FILE]} if proof["lora"] is not None else {}


def _workflows(
    grid: Path, formats: Mapping[str, Sequence[str]], call: Mapping[str, Any], scratch: Path
) -> dict[str, Path]:
    """Write the ComfyUI workflows of the release, and a copy of the grid that carries the first in its metadata."""
    chosen = {WORKFLOW: checkpoint_file(formats)}
    gguf = gguf_file(formats)
    if gguf is not None:
        chosen[GGUF_WORKFLOW] = gguf
    for name, weights in chosen.items():
        (scratch / name).write_text(workflow_text(weights, call), encoding="utf-8")
    copy_with_workflow(grid, scratch / GRID, chosen[WORKFLOW], call)
    return {name: scratch / name for name in (*chosen, GRID)}
