"""Run the stages of a release again, from its revision, settings and data, and compare the results."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import PARAMS_FILE, read_values
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.evidence import require_consistent
from srpo_core.release.layout import REPORT, descriptive_files
from srpo_core.release.provenance import LOCK, environment
from srpo_core.release.references import resolve
from srpo_core.release.reproduction import Comparison, Results, compare
from srpo_core.runtime.dvc_yaml import DVC_FILE, files_below, value_at
from srpo_core.runtime.shared_files import storage
from srpo_core.storage import Store
from srpo_core.workspace.git import git
from srpo_core.workspace.inputs import link_inputs
from srpo_core.workspace.reproduce import run_again
from srpo_core.workspace.stage_graph import read_graph
from srpo_core.workspace.worktree import Workspace, fetch_data, open_workspace

STEM: Final = "model"  # of the single files that stage quantize writes; a release calls them after the model

log = logging.getLogger(__name__)


def reproduce(
    store: Store, reference: str, *, checkout: Path, on_line: Callable[[str], None]
) -> tuple[Comparison, Path]:
    """Run every stage of a release again in a workspace, and compare the results; return them and the workspace.

    No result is taken from DVC's cache, from an interrupted run, or from the images that other runs have kept.

    Raises:
        ConfigError: the release names no revision, or `checkout` does not have it.
        StoreError: there is no such release, it contradicts itself, or it lacks a file that is needed.
        StageError: a stage failed.
    """
    version = resolve(store, reference)
    manifest = store.manifest(version)
    require_consistent(store, version, manifest)
    revision = manifest["git"]["revision"]
    if revision is None:
        raise ConfigError(
            f"release {version} was not published from a git checkout, so it names no revision: publish from one to make "
            "it reproducible"
        )
    with open_workspace(checkout, revision=revision) as opened, _exchange_of_its_own(opened) as shared:
        # a home of its own, so that no stage resumes from what another run left, or reuses its images
        workspace = replace(opened, home=opened.path.parent / "home", shared=shared)
        _restore(store, version, manifest, workspace)
        graph = read_graph(workspace.path)
        # not validated: the settings are those of the release's code, which may have had others
        values = read_values(workspace.path / PARAMS_FILE)
        named = [path for stage in graph.stages for path in stage.inputs_of_settings(values)]
        link_inputs(workspace, named, revision=revision)
        fetch_data(workspace, graph.data)
        for stage in graph.stages:
            if stage.needs_passed and not _decision(workspace.path)["passed"]:
                on_line(f"{stage.name} skipped: the gate refused the model")
                continue
            on_line(f"{stage.name}: {stage.description}")
            run_again(workspace, stage.name, on_line)
        released = _released(store, version, manifest, values)
        again = _results(workspace.path, values, released)
        deterministic = not value_at(values, "resources.use_gpu")
        return compare(released, again, deterministic=deterministic), workspace.path


@contextmanager
def _exchange_of_its_own(workspace: Workspace) -> Iterator[str | None]:
    """Yield a place below SRPO_SHARED, if it is set, that is deleted afterwards."""
    shared = storage()
    if shared is None:
        yield None
        return
    own = shared / "reproduce" / workspace.run_id
    try:
        yield own.uri
    finally:
        own.delete()


def _restore(store: Store, version: str, manifest: Mapping[str, Any], workspace: Workspace) -> None:
    """Apply the uncommitted changes that the manifest records, and write the settings and the graph of the release."""
    if manifest["git"]["diff"]:
        patch = workspace.path.parent / "release.diff"
        patch.write_text(manifest["git"]["diff"], encoding="utf-8")
        git(workspace.path, "apply", "--whitespace=nowarn", str(patch))
    if manifest["git"]["untracked"]:
        log.warning(
            "release %s was made beside files that its revision does not have, and that are missing here: %s",
            version,
            ", ".join(manifest["git"]["untracked"]),
        )
    for name in (PARAMS_FILE, DVC_FILE):
        (workspace.path / name).write_bytes(_read(store, version, manifest, str(name)))
    (workspace.path / LOCK).unlink(missing_ok=True)


def _released(store: Store, version: str, manifest: Mapping[str, Any], values: Mapping[str, Any]) -> Results:
    written = _written(values)
    return Results(
        outs=_outs(_read(store, version, manifest, str(LOCK))),
        files={name: entry["sha256"] for name, entry in manifest["files"].items() if name not in written},
        decision=manifest["decision"],
        proof=manifest["proof"],
        kind=manifest["environment"],
    )


def _results(root: Path, values: Mapping[str, Any], released: Results) -> Results:
    made = list(_made(root, value_at(values, "model.path")))
    proof = root / artifacts.PROOF
    return Results(
        outs=_outs((root / LOCK).read_bytes()),
        files={
            name: digest
            for name, digest in released.files.items()
            if any(digest == own and name.endswith(ending) for ending, own in made)
        },
        decision=_decision(root),
        proof=artifacts.read_json(proof) if proof.is_file() else None,
        kind=environment(root),
    )


def _made(root: Path, base: str) -> Iterator[tuple[str, str]]:
    """Yield how the name of each file of a run ends in a release, and its SHA-256; single files get another stem."""
    for directory in (artifacts.DECISION.parent, artifacts.PROOF.parent, Path(base)):
        for path in files_below(root / directory):
            yield path.name.removeprefix(STEM), artifacts.sha256(path)


def _written(values: Mapping[str, Any]) -> set[str]:
    """Name the files that are not results of stages: publishing writes or copies them, or adds the formats (report)."""
    return descriptive_files(value_at(values, "release.license_files")) | {REPORT, str(LOCK)}


def _decision(root: Path) -> Mapping[str, Any]:
    decision: Mapping[str, Any] = artifacts.read_json(root / artifacts.DECISION)
    return decision


def _outs(lock: bytes) -> dict[str, str]:
    stages = parse_yaml(lock.decode("utf-8"), str(LOCK))["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ())}


def _read(store: Store, version: str, manifest: Mapping[str, Any], name: str) -> bytes:
    if name not in manifest["files"]:
        raise StoreError(f"release {version} in {store.uri} has no {name}, so its run cannot be repeated")
    return b"".join(store.read(version, name))
