"""Make data versions without a Prefect flow and without a remote, and a release in production that was trained on one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from small_release import publish_small

from srpo_core.config import load_settings
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.release.aliases import move_alias
from srpo_core.storage import DirectoryStore
from srpo_core.workspace import data_versions
from srpo_core.workspace.data_settings import settings_to_note
from srpo_core.workspace.git import git
from srpo_core.workspace.worktree import open_workspace


def make_version(checkout: Path, source: Path, name: str, format_name: str, day: int, **ingest: Any) -> str:
    """Make a version of data/<name> from `source`, dated by its day, as the flow `data` does, but check and push nothing.

    ingest: settings of ingest that read it.
    """
    changes = {**ingest, "format": format_name}
    with (
        pytest.MonkeyPatch.context() as patch,
        open_workspace(checkout, revision="HEAD") as workspace,
    ):
        patch.setenv("GIT_COMMITTER_DATE", f"2026-01-{day:02d}T00:00:00Z")
        data_versions.collect(source, workspace.path / "data" / name, format_name)
        noted = settings_to_note(load_settings(workspace.path / "params.yaml").ingest, changes)
        tag = data_versions.version_tag(workspace, data_versions.track(workspace, name), noted)
        data_versions.commit(workspace, name, tag, noted, {})
    return tag


def promote_release_of(
    checkout: Path, store: Path, number: int, tag: str, ingest: Mapping[str, Any] | None = None
) -> str:
    """Publish a small release that was trained on a data version, and point production to it.

    ingest: settings of ingest of its run that differ from what the version notes.
    """
    source = tag.rpartition("/")[0]
    pointer = parse_yaml(git(checkout, "show", f"{tag}:{source}.dvc"), tag)
    settings = load_settings(checkout / "params.yaml").ingest.model_dump(mode="json")
    whole = {**settings, **data_versions.noted(checkout, tag)[0], **(ingest or {}), "source": source}
    import yaml

    store.mkdir(exist_ok=True)
    opened = DirectoryStore(store)
    version = publish_small(
        opened,
        store.parent,
        number,
        more={"params.yaml": yaml.safe_dump({"ingest": whole}).encode()},
        parts={"lineage": {"data": {"name": source, "md5": pointer["outs"][0]["md5"]}}},
    )
    move_alias(opened, "tiny/production", version, why="a test")
    return version
