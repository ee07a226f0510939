"""Create a new version of the data: a few large files below data/<name>/, checked, tracked by DVC, and pushed.

A version is a git tag `data/<name>/<12 hex digits>` of a commit that changes only `data/<name>.dvc`. The tag is created
last, so the remote has all files of a tagged version.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from srpo_core.artifacts import QUARANTINE, home, replacing
from srpo_core.config import PARAMS_FILE, write_settings
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.data.sources import require_source, source_format
from srpo_core.data.statistics import count_rows, read_findings
from srpo_core.errors import ConfigError, SrpoError, StageError, StoreError
from srpo_core.storage.s3.download import STATE, download_tree
from srpo_core.workspace.data_remote import (
    Audit,
    AuditDepth,
    audit_remote,
    damaged_in_cache,
    directory_hash,
    remove_objects,
    without_unfinished_uploads,
)
from srpo_core.workspace.data_settings import READING, other_settings
from srpo_core.workspace.dvc import run_dvc
from srpo_core.workspace.git import git, missing_identity, try_git
from srpo_core.workspace.reproduce import run_in_workspace
from srpo_core.workspace.worktree import Workspace

_INGEST: Final = "Ingest: "
_FINDINGS: Final = "Findings: "
_VERSION: Final = re.compile(r"/[0-9a-f]{12}\Z")


@dataclass(frozen=True)
class Checked:
    """What stage ingest made of the data.

    counts: of prompts, styles and pairs, see `count_rows`. findings: by rule, see `read_findings`. set_aside: the file
    with the records that were set aside; None if none was.
    """

    counts: dict[str, dict[str, int]]
    findings: Mapping[str, Any]
    set_aside: Path | None = None


def collect(source: str | Path, target: Path, format_name: str) -> None:
    """Copy a data set to `target`, which is emptied first, as a few large files of the same format.

    There are few large files because DVC loses files of large trees (treeverse/dvc #10977).

    Raises:
        ConfigError: the format is unknown.
        DataError: the source or a part of it is missing, or has another layout.
    """
    path = require_source(source, format_name)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    source_format(format_name).collect(path, target)


def local_source(source: str) -> str:
    """Return the path of a source: itself, or a copy of what is below `s3://bucket/prefix`.

    The copy is below `artifacts.home()` until `forget_copy`; an interrupted one is continued.

    Raises:
        StoreError: the bucket cannot be read.
    """
    if not is_remote(source):
        return source
    target = path_of_copy(source)
    download_tree(source, target)
    files = [path for path in target.iterdir() if path.name != STATE]
    # an object that is named as a whole is a file of that name
    return str(files[0] if [path.name for path in files] == [target.name] else target)


def forget_copy(source: str) -> None:
    """Delete what `local_source` copied."""
    if is_remote(source):
        shutil.rmtree(path_of_copy(source).parent, ignore_errors=True)


def is_remote(source: str) -> bool:
    """Whether a source is in object storage."""
    return source.startswith("s3://")


def path_of_copy(source: str) -> Path:
    """Return where `local_source` copies what is below `s3://bucket/prefix`."""
    uri = source.rstrip("/")
    return home() / "sources" / sha256(uri.encode()).hexdigest()[:12] / uri.rpartition("/")[2]


def check(
    workspace: Workspace, name: str, ingest: Mapping[str, Any], on_line: Callable[[str], None]
) -> Checked:
    """Run the stage ingest on data/<name>, with the code of the workspace and every image, and delete its outputs.

    ingest: settings of ingest that differ from those of the workspace, such as the format. The list of bad records is
    copied to `<home>/data/<name>-quarantine.jsonl`, also if they end the check.

    Raises:
        StageError: a record breaks a rule; the message is the error line of ingest.
    """
    kept = workspace.home / "data" / f"{name}-quarantine.jsonl"
    kept.unlink(missing_ok=True)
    changed = {**ingest, "source": f"data/{name}", "check_images": "all"}
    write_settings(workspace.path, profile=None, patch={"ingest": changed})
    try:
        run_in_workspace(
            workspace,
            "the data are refused",
            [sys.executable, "-m", "srpo_core", "stage", "ingest", "--alone"],
            lambda line: on_line(line.replace(str(QUARANTINE), str(kept))),
        )
    except StageError as error:
        _keep_quarantine(workspace, kept)
        raise StageError(str(error).replace(str(QUARANTINE), str(kept)), error.exit_code) from None
    set_aside = _keep_quarantine(workspace, kept)
    checked = Checked(count_rows(workspace.path), read_findings(workspace.path), set_aside)
    shutil.rmtree(workspace.path / "runs/ingest", ignore_errors=True)
    git(workspace.path, "checkout", "--quiet", "HEAD", "--", str(PARAMS_FILE))
    return checked


def track(workspace: Workspace, name: str) -> str:
    """Add data/<name> to DVC's cache and return the tag of these files, which may not exist yet.

    Raises:
        SrpoError: DVC failed, for instance because the disk is full.
    """
    _dvc(workspace, "add", f"data/{name}")
    return f"data/{name}/{directory_hash(workspace, name)[:12]}"


def version_tag(workspace: Workspace, tag: str, ingest: Mapping[str, Any]) -> str:
    """Return the tag of a version: that of its files, unless it notes settings by which other records are read.

    ingest: the settings that read the version (`data_settings.settings_to_note`). With other settings the same files
    are another version, whose digits are a hash of files and settings.
    """
    if not is_tagged(workspace, tag) or not other_settings(noted(workspace.path, tag)[0], ingest):
        return tag
    name = tag.split("/")[1]
    settings = json.dumps({key: ingest.get(key) for key in READING}, sort_keys=True)
    text = f"{directory_hash(workspace, name)} {settings}"
    return f"data/{name}/{sha256(text.encode()).hexdigest()[:12]}"


def push(workspace: Workspace, name: str, depth: AuditDepth = "md5") -> Audit:
    """Push data/<name> to the default remote, then compare the remote with the manifest, object by object.

    DVC trusts the directory's object and its index as proof that the files are there, so after a killed push it may
    report success and upload nothing. Therefore damaged objects are removed from the remote, together with the
    directory's object and the index, and pushed once more.

    depth: `full` reads every object; else an MD5 that the store reports is believed. Returns the last comparison.

    Raises:
        StoreError: the remote still lacks objects or has them with other bytes, or cannot be reached.
    """
    with without_unfinished_uploads(workspace, name):
        _push_once(workspace, name)
        audit = audit_remote(workspace, name, depth)
        if audit.damaged:
            remove_objects(workspace, [*audit.damaged, directory_hash(workspace, name)])
            shutil.rmtree(workspace.site_cache, ignore_errors=True)
            _push_once(workspace, name)
            audit = audit_remote(workspace, name, depth)
    if audit.damaged:
        for path in damaged_in_cache(workspace, audit.damaged):
            raise StoreError(
                f"DVC's cache has lost {path}, or has other bytes there: delete that file if there is one, then start again"
            )
        raise StoreError(
            f"the remote lacks {len(audit.damaged)} objects of data/{name} after two pushes, or has them with other "
            f"bytes, first {audit.damaged[0]}: check that the remote is writable ('dvc remote list' names it), then "
            "start again"
        )
    return audit


def commit(
    workspace: Workspace, name: str, tag: str, ingest: Mapping[str, Any], findings: Mapping[str, Any]
) -> None:
    """Commit data/<name>.dvc on the detached HEAD of the workspace and tag it, unless the tag exists.

    ingest: the settings that read it (`data_settings.settings_to_note`). The message notes them, and the findings of
    ingest, for `noted`.
    """
    if is_tagged(workspace, tag):
        return
    git(
        workspace.path, "add", "--force", f"data/{name}.dvc", "data/.gitignore"
    )  # also if the user ignores such files
    notes = "\n".join(
        f"{key}{json.dumps(value, sort_keys=True)}"
        for key, value in ((_INGEST, ingest), (_FINDINGS, findings))
    )
    message = ["-m", f"Data: {tag}", "-m", notes]
    identity = missing_identity(workspace.path)
    git(workspace.path, "commit", "--quiet", "--allow-empty", *message, environment=identity)
    git(workspace.path, "tag", tag)


def noted(checkout: Path, tag: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the settings of ingest that read a version, and what ingest found when it was made.

    The first versions have no notes: they are in the format hpdv2, and the findings are None.
    """
    lines = git(checkout, "log", "-1", "--format=%B", tag).splitlines()
    notes = {
        key: json.loads(line.removeprefix(key))
        for line in lines
        for key in (_INGEST, _FINDINGS)
        if line.startswith(key)
    }
    return notes.get(_INGEST, {"format": "hpdv2"}), notes.get(_FINDINGS)


def version_read(checkout: Path, source: str, md5: str, ingest: Mapping[str, Any]) -> str | None:
    """Return the tag of the version of data/<name> with these files that such settings read; None if there is none.

    md5: of the directory, as in data/<name>.dvc. ingest: all settings of ingest.
    """
    for tag in git(checkout, "tag", "--list", f"{source}/*").splitlines():
        pointer = try_git(checkout, "show", f"refs/tags/{tag}:{source}.dvc") if _VERSION.search(tag) else None
        if pointer is None:  # a tag that `srpo data` has not made
            continue
        files = parse_yaml(pointer, f"{source}.dvc of {tag}")["outs"][0]["md5"]
        if files == md5 and not other_settings(noted(checkout, tag)[0], ingest):
            return tag
    return None


def is_tagged(workspace: Workspace, tag: str) -> bool:
    """Whether a version exists."""
    return bool(git(workspace.path, "tag", "--list", tag))


def commit_of(workspace: Workspace, tag: str) -> str:
    """Return the id of a version's commit, which never changes."""
    return git(workspace.path, "rev-parse", f"{tag}^{{commit}}")


def is_tag_of_head(workspace: Workspace, tag: str) -> bool:
    """Whether the parent of a version's commit, whose code its runs use, is the workspace's commit."""
    parent = try_git(
        workspace.path, "rev-parse", "--verify", "--quiet", f"{tag}^"
    )  # a shallow clone may lack it
    return parent is not None and parent.strip() == git(workspace.path, "rev-parse", "HEAD")


def require_name(name: str) -> None:
    """Raise `ConfigError` unless `name` is valid as a directory below data/ and as a part of a tag."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise ConfigError(f"data name {name!r}: use letters, digits, '-' and '_', for instance hpd")


def _keep_quarantine(workspace: Workspace, kept: Path) -> Path | None:
    """Copy the list of bad records to `kept` and return that; None if no record is bad."""
    found = workspace.path / QUARANTINE
    if not found.is_file() or not found.stat().st_size:
        return None
    kept.parent.mkdir(parents=True, exist_ok=True)
    with replacing(kept) as partial:
        shutil.copyfile(found, partial)
    return kept


def _push_once(workspace: Workspace, name: str) -> None:
    try:
        _dvc(workspace, "push", f"data/{name}.dvc")
    except SrpoError as error:
        raise StoreError(f"data/{name} was not pushed: {error}") from None


def _dvc(workspace: Workspace, *arguments: str) -> None:
    run_dvc(*arguments, cwd=workspace.path, environment=workspace.environment())
