"""The data version that the release in production was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from posixpath import normpath
from typing import Any

from srpo_core.config import PARAMS_FILE
from srpo_core.config.yaml_text import parse_yaml
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.references import in_production
from srpo_core.storage import Store
from srpo_core.workspace.data_versions import version_read
from srpo_core.workspace.git import git_path


@dataclass(frozen=True)
class TrainingData:
    """The release in production, and the tag `data/NAME/HASH` of the data version that it was trained on."""

    release: str
    tag: str

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.tag.split("/")[1]


def data_of_production(store: Store, model: str, checkout: Path) -> TrainingData | str:
    """Return what the release of `model` in production was trained on; or, in words, why there is nothing to compare with.

    There is nothing if no release is in production, or if it was not trained on a data version.

    Raises:
        StoreError: the store cannot be read, or lacks the release in production.
        ConfigError: `checkout` has no tag of the data version.
    """
    release = in_production(store, model)
    if release is None:
        return f"no release of {model} is in production in {store.uri}: 'srpo promote VERSION' promotes one"
    manifest = store.manifest(release)
    lineage = manifest.get("lineage")
    data = lineage.get("data") if isinstance(lineage, Mapping) else None
    name, md5 = (data.get("name"), data.get("md5")) if isinstance(data, Mapping) else (None, None)
    if not isinstance(name, str) or not isinstance(md5, str):
        return f"{release}, which is in production, does not record its data: its manifest has no lineage"
    source = normpath(name)
    if not source.startswith("data/"):
        return (
            f"{release}, which is in production, was trained on {name}, which is no data version: 'srpo data {name}' makes "
            "one to train on"
        )
    top = git_path(checkout, "rev-parse", "--show-toplevel")
    tag = version_read(top, source, md5, _ingest(store, release, manifest))
    if tag is None:
        raise ConfigError(
            f"{release}, which is in production, was trained on a version of {source} with the MD5 {md5}, and no tag of "
            f"{top} is of it: 'git fetch --tags' brings those of other clones"
        )
    return TrainingData(release, tag)


def _ingest(store: Store, release: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ingest in a release's params.yaml; other settings may be of another srpo."""
    where = f"{PARAMS_FILE} of {release}"
    content = b"".join(store.read(release, str(PARAMS_FILE)))
    if sha256(content).hexdigest() != manifest["files"][str(PARAMS_FILE)]["sha256"]:
        raise StoreError(f"{where} in {store.uri} does not match its manifest: run 'srpo verify {release}'")
    values = parse_yaml(content.decode(), where)
    if not isinstance(values, Mapping) or not isinstance(values.get("ingest"), Mapping):
        raise StoreError(f"{where} in {store.uri} has no settings of ingest: restore it from a backup")
    return dict(values["ingest"])
