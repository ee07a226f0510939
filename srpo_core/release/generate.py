"""Generate an image with a release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_core import artifacts
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.quantizers import LORA_FORMAT, REFERENCE, read_file
from srpo_core.release.download import fetch
from srpo_core.release.manifest import release_manifest
from srpo_core.release.references import resolve
from srpo_core.storage import Store


def generate(
    store: Store,
    reference: str,
    prompt: str,
    *,
    output: Path,
    seed: int = 0,
    weights: str = REFERENCE,
    device: str = "cpu",
    cache: Path | None = None,
) -> Path:
    """Generate an image of `prompt` with the settings of the model card, and write it to `output` as PNG.

    weights: one of the release's formats; cache: where `fetch` stores a release from a bucket.

    Raises:
        StoreError: there is no such release, or it cannot be read.
        ConfigError: the release has no such format.
        ArtifactError: the release's files cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError

    manifest = release_manifest(store, resolve(store, reference), "pipeline", "call")
    directory = fetch(store, manifest["version"], cache=cache)
    name = weights.lower()
    # a LoRA alone is not a transformer; it is already merged into all other formats
    known = {one: files for one, files in manifest["formats"].items() if one != LORA_FORMAT}
    if name not in known:
        raise ConfigError(
            f"release {manifest['version']} has no format {weights!r}: known are {', '.join(known)}"
        )
    try:
        pipeline = _pipeline_class(manifest).from_pretrained(
            directory, dtype=torch.bfloat16, local_files_only=True
        )
        if name != REFERENCE:
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


def _pipeline_class(manifest: Mapping[str, Any]) -> Any:
    """Return the diffusers class that a manifest names. Raises `ArtifactError` if it is no pipeline of diffusers."""
    import diffusers

    name = manifest["pipeline"]
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ArtifactError(
            f"release {manifest['version']} names the pipeline {name!r}, which diffusers {diffusers.__version__} does not "
            "have: install the version of diffusers in its manifest, or run 'srpo verify'"
        )
    return found
