"""A release in lines for a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from srpo_core.release.layout import LORA_FORMAT
from srpo_core.release.moves import show
from srpo_core.storage import Store


def describe(store: Store, reference: str) -> Iterator[str]:
    """What a release is, what was measured of it, and where its aliases went."""
    manifest, moves = show(store, reference)
    decision = manifest["decision"]
    yield f"version  {manifest['version']}"
    yield f"made     {manifest['created_at']} from {manifest['git']['revision'] or 'no git checkout'}"
    yield f"verdict  {decision['verdict']}: {decision['reason']}"
    yield f"files    {len(manifest['files'])}, {_megabytes(manifest['files'].values())}"
    for name, files in manifest["formats"].items():
        size = _megabytes(manifest["files"][file] for file in files)
        yield f"format   {name:<18} {size:>10}  {_measured(manifest['proof'], name)}"
    for name, figures in manifest["proof"]["refused"].items():
        yield f"left out {name:<18} {'; '.join(figures['refused'])}"
    for alias, steps in moves.items():
        for step in steps:
            arrow = f"{step['from'] or 'nothing'} → {step['to'] or 'nothing'}"
            yield f"alias    {alias:<18} {step['when']}  {arrow}  by {step['who']}: {step['why']}"


def _megabytes(entries: Any) -> str:
    return f"{sum(entry['bytes'] for entry in entries) / 1e6:.1f} MB"


def _measured(proof: Mapping[str, Any], name: str) -> str:
    if name == LORA_FORMAT:
        lora = proof["lora"]
        return f"rank {lora['rank']} on {lora['layers']} layers, for the base model"
    figures = proof["formats"][name]
    psnr = "" if figures["psnr"] is None else f", {figures['psnr']:.1f} dB to bf16"
    kept = "" if figures["gain_kept"] is None else f", {figures['gain_kept']:.0%} of the gain kept"
    return f"output error {figures['relative_error']:.2g}{psnr}{kept}"
