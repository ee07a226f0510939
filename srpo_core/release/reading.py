"""Find, verify, fetch and use what was published."""

import fcntl
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.errors import ArtifactError, ConfigError, StoreError
from srpo_core.quantizers import read_file
from srpo_core.release.layout import LORA_FORMAT, PIPELINE_FORMAT
from srpo_core.storage import MANIFEST, FileLostError, Store


@dataclass(frozen=True)
class Release:
    """One line of a list of releases."""

    version: str
    created_at: str
    aliases: tuple[str, ...]
    formats: tuple[str, ...]
    num_bytes: int


def list_releases(store: Store) -> list[Release]:
    """Everything that is published, oldest first."""
    aliases = {name: (store.alias(name)[0] or {}).get("version") for name in store.aliases()}
    releases = []
    for version in store.versions():
        manifest = store.manifest(version)
        releases.append(
            Release(
                version=version,
                created_at=manifest["created_at"],
                aliases=tuple(
                    name.partition("/")[2] for name, to in sorted(aliases.items()) if to == version
                ),
                formats=tuple(manifest["formats"]),
                num_bytes=sum(entry["bytes"] for entry in manifest["files"].values()),
            )
        )
    return sorted(releases, key=lambda release: (release.created_at, release.version))


def resolve(store: Store, reference: str) -> str:
    """The version that a version or an alias names.

    reference: a version, `<model>/<alias>`, or the alias alone where the store has it of one model only.

    Raises:
        StoreError: there is no such release, with those there are, or the alias is one of several models.
    """
    versions = store.versions()
    if reference in versions:
        return reference
    alias = find_alias(store, reference)
    if alias is None:
        known = ", ".join([*store.aliases(), *versions]) or "none"
        raise StoreError(f"{store.uri} has no release {reference!r}: known are {known}")
    value, _ = store.alias(alias)
    if value is None or value["version"] is None:
        raise StoreError(f"the alias {alias} in {store.uri} points to nothing: publish a model first")
    return str(value["version"])


def find_alias(store: Store, name: str) -> str | None:
    """The alias `<model>/<name>` that `name`, whole or without its model, means; None if there is none.

    Raises:
        StoreError: several models have an alias of this name.
    """
    found = [alias for alias in store.aliases() if name in (alias, alias.partition("/")[2])]
    if len(found) > 1:
        raise StoreError(
            f"several models in {store.uri} have an alias {name}: say which of {', '.join(found)}"
        )
    return found[0] if found else None


def verify(store: Store, reference: str) -> Mapping[str, Any]:
    """Hold every file of a release to its SHA-256 and size; return the manifest.

    Raises:
        StoreError: a file is missing or altered; the message names all of them.
    """
    version = resolve(store, reference)
    manifest = store.manifest(version)
    faults = [
        name for name, entry in sorted(manifest["files"].items()) if not _intact(store, version, name, entry)
    ]
    if faults:
        raise StoreError(
            f"release {version} in {store.uri} is damaged: {', '.join(faults)}; restore it from a backup"
        )
    return manifest


def verify_aliases(store: Store) -> list[str]:
    """What is wrong with the aliases of a store, a line for each that was altered or names a version that is not there."""
    versions, faults = store.versions(), []
    for alias in store.aliases():
        try:
            version = (store.alias(alias)[0] or {}).get("version")
        except StoreError as error:
            faults.append(str(error))  # the caller raises when all are read
        else:
            if version is not None and version not in versions:
                faults.append(
                    f"the alias {alias} in {store.uri} points to {version}, which is not there: restore it from a "
                    "backup or point the alias elsewhere"
                )
    return faults


def fetch(store: Store, reference: str, *, cache: Path | None = None) -> Path:
    """The directory of a release on this machine; one from a bucket is downloaded and verified once.

    A download that was killed goes on after the files that it had whole.

    cache: where downloads stay, by default below the project's home.

    Raises:
        StoreError: there is no such release, or it cannot be read or stored here.
    """
    version = resolve(store, reference)
    local = store.local(version)
    if local is not None:
        return local
    manifest = store.manifest(version)
    target = (cache or artifacts.home() / "releases") / f"{version}-{manifest['content'][:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".fetch-{target.name}")
        with partial.with_suffix(".lock").open("a") as lock:
            # of two that want the same release one downloads, and the other finds it done
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_dir():
                return target
            for name, entry in manifest["files"].items():
                _download(store, version, name, entry, partial / name)
            artifacts.write_json(partial / MANIFEST, manifest)
            partial.rename(target)
    except OSError as error:
        raise StoreError(f"release {version} cannot be kept in {target.parent}: {error}") from error
    return target


def generate(
    store: Store,
    reference: str,
    prompt: str,
    *,
    output: Path,
    seed: int = 0,
    weights: str = PIPELINE_FORMAT,
    device: str = "cpu",
    cache: Path | None = None,
) -> Path:
    """Draw an image of `prompt` with a release, as its model card does, and write it to `output` as PNG.

    weights: one of the release's formats.

    Raises:
        StoreError: there is no such release, or it cannot be read.
        ConfigError: the release has no such format.
        ArtifactError: the release's files cannot be loaded.
    """
    import diffusers
    import torch
    from safetensors import SafetensorError

    manifest = store.manifest(resolve(store, reference))
    directory = fetch(store, manifest["version"], cache=cache)
    name = weights.lower()
    # adapters are no weights of their own, and those of a release are merged into all its others
    known = {one: files for one, files in manifest["formats"].items() if one != LORA_FORMAT}
    if name not in known:
        raise ConfigError(
            f"release {manifest['version']} has no format {weights!r}: known are {', '.join(known)}"
        )
    try:
        pipeline = getattr(diffusers, manifest["pipeline"]).from_pretrained(
            directory, dtype=torch.bfloat16, local_files_only=True
        )
        if name != PIPELINE_FORMAT:
            (single,) = (file for file in known[name] if "/" not in file)
            pipeline.transformer.load_state_dict(read_file(directory / single))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ArtifactError(f"release {directory} cannot be loaded ({cause}): run 'srpo verify'") from error
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    call = manifest["call"] | {"prompt": prompt}
    image = pipeline.to(device)(**call, generator=generator).images[0]
    with artifacts.replacing(output) as partial:
        image.save(partial, format="PNG")
    return output


def _intact(store: Store, version: str, name: str, entry: Mapping[str, Any]) -> bool:
    seen, size = hashlib.sha256(), 0
    try:
        for block in store.read(version, name):
            seen.update(block)
            size += len(block)
    except FileLostError:
        return False
    return (seen.hexdigest(), size) == (entry["sha256"], entry["bytes"])


def _download(store: Store, version: str, name: str, entry: Mapping[str, Any], target: Path) -> None:
    if target.is_file() and artifacts.sha256(target) == entry["sha256"]:
        return
    seen = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        for block in store.read(version, name):
            seen.update(block)
            file.write(block)
    if seen.hexdigest() != entry["sha256"]:
        target.unlink()
        raise StoreError(f"{name} of {version} does not have its SHA-256: run 'srpo verify', then restore it")
