"""Summaries of releases: the list of all, and the description of one as lines of text."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any, Final

from srpo_core.errors import ConfigError, StoreError
from srpo_core.quantizers import LORA_FORMAT, REFERENCE
from srpo_core.release.manifest import release_manifest
from srpo_core.release.references import REJECTED, history_of, read_alias, resolve
from srpo_core.release.trust import SignatureError, Trust, release_state, trust_here
from srpo_core.runtime.costs import RunCost, cost_text, money_text, recorded_cost
from srpo_core.storage import Store

_REQUESTS: Final = 16  # at once

log = getLogger(__name__)


@dataclass(frozen=True)
class ReleaseSummary:
    """One line of the list of releases.

    num_bytes: size of all files; fault: why its manifest cannot be read, or None. Then only version and aliases are
    known. signature: `signed by NAME`, `unsigned`, or why no signature counts; empty if it was not asked for.
    """

    version: str
    created_at: str
    aliases: tuple[str, ...]
    formats: tuple[str, ...]
    num_bytes: int
    fault: str | None = None
    signature: str = ""


def list_releases(
    store: Store,
    *,
    signatures: bool = False,
    manifests: Mapping[str, Mapping[str, Any] | StoreError] | None = None,
) -> list[ReleaseSummary]:
    """List all published versions, oldest first; those whose manifest cannot be read are last, with the reason.

    signatures: also read them, and check them against the list of the working directory.
    manifests: those of all versions, if the caller has read them already.
    """
    names = defaultdict[str, list[str]](list)
    for alias, version in alias_targets(store).items():
        if version is not None:
            names[version].append(alias.partition("/")[2])
    if manifests is None:
        manifests = dict(store.manifests(store.versions()))
    releases = [
        _summary(version, manifest, tuple(sorted(names[version]))) for version, manifest in manifests.items()
    ]
    if signatures:
        releases = _with_signatures(store, releases, manifests)
    return sorted(
        releases, key=lambda release: (release.fault is not None, release.created_at, release.version)
    )


def alias_targets(store: Store) -> dict[str, str | None]:
    """Return the version of each alias that can be read; of each other one, only log why it cannot."""
    targets = {}
    for name in store.aliases():
        try:
            targets[name] = read_alias(store, name).version
        except StoreError as error:
            log.warning("%s", error)
    return targets


def _summary(
    version: str, manifest: Mapping[str, Any] | StoreError, aliases: tuple[str, ...]
) -> ReleaseSummary:
    if isinstance(manifest, StoreError):
        return ReleaseSummary(version, "", aliases, (), 0, str(manifest))
    try:
        num_bytes = sum(entry["bytes"] for entry in manifest["files"].values())
        return ReleaseSummary(
            version, str(manifest["created_at"]), aliases, tuple(manifest["formats"]), num_bytes
        )
    except (KeyError, TypeError) as error:
        fault = f"its manifest is not one of srpo ({type(error).__name__}: {error}): restore it from a backup"
        return ReleaseSummary(version, "", aliases, (), 0, fault)


def _with_signatures(
    store: Store,
    releases: Sequence[ReleaseSummary],
    manifests: Mapping[str, Mapping[str, Any] | StoreError],
) -> list[ReleaseSummary]:
    """Add the state of each release's signatures; a store in a bucket is asked for several at once."""
    trust = _trust_or_reason()

    def with_signature(release: ReleaseSummary) -> ReleaseSummary:
        manifest = manifests[release.version]
        if isinstance(manifest, StoreError):
            return release
        return replace(release, signature=_signature_state(store, release.version, manifest, trust))

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(with_signature, releases))


def _trust_or_reason() -> Trust | str:
    """Return whose signatures count here, or why that is not known: releases are listed all the same."""
    try:
        return trust_here()
    except ConfigError as error:
        return f"not checked: {error}"


def _signature_state(store: Store, version: str, manifest: Mapping[str, Any], trust: Trust | str) -> str:
    """Return `signed by NAME`, `unsigned`, that signatures were not checked, or why none counts."""
    if isinstance(trust, str):
        return trust
    try:
        return release_state(store, version, manifest, trust)
    except SignatureError as error:
        return f"not trusted: {error}"


def describe(store: Store, reference: str) -> Iterator[str]:
    """Describe a release line by line: origin, verdict, signature, files, formats with errors, cost, moves of aliases."""
    manifest = release_manifest(store, resolve(store, reference))
    decision = manifest["decision"]
    yield f"version  {manifest['version']}"
    yield f"made     {manifest['created_at']} from {manifest['git']['revision'] or 'no git checkout'}"
    yield f"verdict  {decision['verdict']}: {decision['reason']}"
    state = _signature_state(store, manifest["version"], manifest, _trust_or_reason())
    yield f"signed   {state}"
    yield f"files    {len(manifest['files'])}, {_megabytes(manifest['files'].values())}"
    for name, files in manifest["formats"].items():
        size = _megabytes(manifest["files"][file] for file in files)
        yield f"format   {name:<18} {size:>10}  {_measured(manifest['proof'], name)}"
    for name, figures in manifest["proof"]["refused"].items():
        yield f"left out {name:<18} {'; '.join(figures['refused'])}"
    yield from _cost_lines(recorded_cost(manifest))
    for alias, steps in history_of(store, manifest["version"]).items():
        for step in steps:
            arrow = f"{step['from'] or 'nothing'} → {step['to'] or 'nothing'}"
            if REJECTED in step:
                arrow = REJECTED
            yield f"alias    {alias:<18} {step['when']}  {arrow}  by {step['who']}: {step['why']}"


def _megabytes(entries: Iterable[Mapping[str, Any]]) -> str:
    return f"{sum(entry['bytes'] for entry in entries) / 1e6:.1f} MB"


def _cost_lines(cost: RunCost | None) -> Iterator[str]:
    """Describe what a release cost, and each stage; nothing if its manifest does not record it."""
    if cost is None:
        return
    yield f"cost     {cost_text(cost)}"
    for stage in cost.stages:
        attempts = "" if stage.attempts == 1 else f", {stage.attempts} attempts"
        money = f", {money_text(stage.money)}" if stage.money else ""
        devices = f"{stage.devices} {stage.kind}{'s' if stage.devices > 1 else ''}"
        hours = f"{stage.wall_hours:.4f} h on {devices}, {stage.device_hours:.4f} device hours"
        yield f"cost     {stage.stage:<18} {hours}{money}{attempts}"


def _measured(proof: Mapping[str, Any], name: str) -> str:
    if name == LORA_FORMAT:
        lora = proof["lora"]
        return f"rank {lora['rank']} on {lora['layers']} layers, for the base model"
    figures = proof["formats"][name]
    psnr = "" if figures["psnr"] is None else f", {figures['psnr']:.1f} dB to {REFERENCE}"
    kept = "" if figures["gain_kept"] is None else f", {figures['gain_kept']:.0%} of the gain kept"
    return f"output error {figures['relative_error']:.2g}{psnr}{kept}"
