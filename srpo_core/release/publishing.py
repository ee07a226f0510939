"""Publish what a run made as an immutable version, move an alias to it, and take both back."""

import getpass
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, Settings, load_settings
from srpo_core.errors import StoreError
from srpo_core.gates import require_passed
from srpo_core.release.card import image_call, model_card
from srpo_core.release.comfyui import with_workflow, workflow_text
from srpo_core.release.layout import (
    CARD,
    GGUF_WORKFLOW,
    GRID,
    LORA_FORMAT,
    REPORT,
    TRANSFORMER,
    WORKFLOW,
    checkpoint_file,
    describing,
    existing,
    format_files,
    gguf_file,
    pipeline_class,
    release_files,
)
from srpo_core.release.provenance import environment, git_state, require_reproduced, version_of
from srpo_core.report.formats import with_formats
from srpo_core.storage import Store, content_digest, model_of, require_conditions, version_key

SCHEMA_VERSION: Final = 2
CANDIDATE: Final = "candidate"
PRODUCTION: Final = "production"
ALIAS_ATTEMPTS: Final = 5

log = getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """What a publication did, so that it can be taken back.

    uri: the directory of the release, or its URI; created: False when the version was there already;
    alias: as `<model>/<name>`; previous: the version that the alias pointed to before, or None.
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
    cost: Mapping[str, Any] | None = None,
) -> Published:
    """Publish the run in `root` as a version and point its model's `alias` to it. Doing it again changes nothing.

    who: goes into the alias's history; by default the user of this process. cost: what the run took, for the
    manifest.

    Raises:
        GateError: the gate refused the model.
        ArtifactError: a file or a licence text is missing, or is not what dvc.lock records.
        StoreError: the store is full, read-only, unreachable, or holds another content under this version.
    """
    require_passed(artifacts.read_json(existing(root, artifacts.DECISION)))
    settings = load_settings(root / PARAMS_FILE)
    recorded = (artifacts.QUANTIZED.parent, artifacts.DECISION, artifacts.REPORT.parent)
    require_reproduced(root, (Path(settings.model.path), *recorded))
    version = version_of(settings.release.name, root)
    with TemporaryDirectory(prefix="srpo-card-") as scratch:
        files, manifest = _assemble(root, settings, version, Path(scratch))
        manifest["cost"] = dict(cost or {})
        require_conditions(store, accepted=settings.release.unconditional_store)
        created = store.publish(version, files, manifest)
    if not created:
        _say_what_stays(store.manifest(version)["files"], manifest["files"], version)
    log.info("%s is %s in %s", version, "published" if created else "already", store.uri)
    alias = f"{model_of(version)}/{alias}"
    previous = move_alias(store, alias, version, why=why, who=who)
    local = store.local(version)
    uri = f"{store.uri}/{version_key(version)}" if local is None else str(local)
    return Published(version=version, uri=uri, created=created, alias=alias, previous=previous)


def _say_what_stays(
    published: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], version: str
) -> None:
    """Warn of describing files that would be others by now, so that a mended card is not taken for published."""
    names = sorted(published.keys() | now.keys())
    other = [
        name for name in names if published.get(name, {}).get("sha256") != now.get(name, {}).get("sha256")
    ]
    if other:
        log.warning(
            "%s stays as it was first published, also in %s, which would differ now: a version never changes. "
            "To publish it with these, set another release.name",
            version,
            ", ".join(other),
        )


def withdraw(store: Store, published: Published) -> None:
    """Undo a publication: the alias goes back, and a version that it created is removed.

    An alias that was moved on meanwhile stays where it is, and what an alias has come to is kept.
    """
    value, _ = store.alias(published.alias)
    if value is not None and value["version"] == published.version != published.previous:
        move_alias(store, published.alias, published.previous, why=f"{published.version} was withdrawn")
    if published.created:
        remove_unheld(store, published.version)


def held_versions(store: Store) -> set[str | None]:
    """What an alias points to, and all that production has ever held."""
    held: set[str | None] = set()
    for alias in store.aliases():
        value, _ = store.alias(alias)
        if value is not None:
            held.add(value["version"])
            held |= {step["to"] for step in value["history"] if alias.endswith(f"/{PRODUCTION}")}
    return held


def remove_unheld(store: Store, version: str) -> bool:
    """Remove a version unless an alias holds it by now; returns whether it went."""

    def held() -> bool:
        return version in held_versions(store)

    if held() or not store.remove(version, unless=held):
        log.warning("kept %s: an alias has come to it meanwhile", version)
        return False
    log.info("removed %s", version)
    return True


def move_alias(
    store: Store, name: str, version: str | None, *, why: str, who: str | None = None
) -> str | None:
    """Point an alias `<model>/<name>` to a version (None: to nothing), note it in its history, return where it pointed before.

    Raises:
        StoreError: the store has no such version, or others kept moving the alias.
    """
    if version is not None:
        store.manifest(version)
    for _ in range(ALIAS_ATTEMPTS):
        value, token = store.alias(name)
        before = None if value is None else value["version"]
        if before == version:
            return before
        step = step_of(before, version, why=why, who=who)
        history = [*(() if value is None else value["history"]), step]
        if store.write_alias(name, {"version": version, "history": history}, token):
            if version is not None:
                require_held(store, name, version, value)
            return before
    raise StoreError(f"others keep moving the alias {name} in {store.uri}: look at it, then try again")


def require_held(store: Store, name: str, version: str, before: Mapping[str, Any] | None) -> None:
    """Look that a version is still there once an alias points to it; if not, the alias is as it was `before`.

    Raises:
        StoreError: it was removed at the same moment (see `Store.remove`).
    """
    if version in store.versions():
        return
    now, token = store.alias(name)
    if now is not None and now["version"] == version:  # else another has moved it on
        gone = step_of(version, None, why=f"{version} was removed at the same moment", who=None)
        nothing = {"version": None, "history": [*now["history"], gone]}
        store.write_alias(name, nothing if before is None else before, token)
    raise StoreError(
        f"{version} was removed from {store.uri} at the same moment, so {name} does not point to it: "
        "look with 'srpo releases'"
    )


def step_of(before: str | None, after: str | None, *, why: str, who: str | None) -> dict[str, Any]:
    """One step of an alias's history: when, who (by default this process's user), why, from where to where.

    why: kept in one line, without what would steer a terminal.
    """
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in why).split())
    return {"when": _now(), "who": who or _user(), "why": line, "from": before, "to": after}


def _assemble(
    root: Path, settings: Settings, version: str, scratch: Path
) -> tuple[dict[str, Path], dict[str, Any]]:
    """The files of a release by name, with those made here written to `scratch`, and the manifest."""
    decision = artifacts.read_json(existing(root, artifacts.DECISION))
    proof = artifacts.read_json(existing(root, artifacts.PROOF))
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
    files |= _workflows(existing(root, artifacts.GRID), formats, image_call(settings, proof), scratch)
    entries = {
        name: {"sha256": artifacts.sha256(path), "bytes": path.stat().st_size} for name, path in files.items()
    }
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "created_at": _now(),
        "content": content_digest(entries, entries.keys() - describing(settings)),
        "files": entries,
        "formats": formats | _lora(proof),
        "git": git_state(root),
        "environment": environment(root),
        "decision": decision,
        "proof": proof,
        "evaluation": artifacts.read_json(existing(root, artifacts.EVALUATION_SUMMARY)),
        "pipeline": pipeline,
        "call": image_call(settings, proof),
    }
    return files, manifest


def _lora(proof: Mapping[str, Any]) -> dict[str, list[str]]:
    """The LoRA as one of the formats, if there is one: it can be pulled, and has no figures of its own."""
    return {LORA_FORMAT: [artifacts.LORA_FILE]} if proof["lora"] is not None else {}


def _workflows(
    grid: Path, formats: Mapping[str, Sequence[str]], call: Mapping[str, Any], scratch: Path
) -> dict[str, Path]:
    """ComfyUI's workflows for the released files, and the grid that carries the first."""
    chosen = {WORKFLOW: checkpoint_file(formats)}
    gguf = gguf_file(formats)
    if gguf is not None:
        chosen[GGUF_WORKFLOW] = gguf
    for name, weights in chosen.items():
        (scratch / name).write_text(workflow_text(weights, call), encoding="utf-8")
    with_workflow(grid, scratch / GRID, chosen[WORKFLOW], call)
    return {name: scratch / name for name in (*chosen, GRID)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return f"user {os.getuid()}"
