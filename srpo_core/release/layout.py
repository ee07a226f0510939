"""Map the files of a run to the files of a release."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.quantizers import LORA_FORMAT, REFERENCE
from srpo_core.weights.files import WEIGHTS

TRANSFORMER: Final = "transformer"
MODEL_INDEX: Final = "model_index.json"
CARD: Final = "README.md"
GRID: Final = "grid.png"
REPORT: Final = "report.html"

# The GGUF that the card and the workflow recommend; float types are for conversion, and as large as the safetensors
# file.
RECOMMENDED_GGUF: Final = "q8_0"
FLOAT_GGUFS: Final = ("gguf_f16", "gguf_bf16")

WORKFLOW: Final = "workflow.json"
GGUF_WORKFLOW: Final = "workflow-gguf.json"

_DESCRIPTIVE: Final = (CARD, GRID, WORKFLOW, GGUF_WORKFLOW, "params.yaml", "dvc.yaml")


def descriptive_files(license_files: Iterable[str]) -> set[str]:
    """Return the files that are not part of a version's content digest.

    dvc.lock does not record them, so they may differ between two publications of the same version.
    """
    return {*_DESCRIPTIVE, *(Path(name).name for name in license_files)}


def format_directory(name: str) -> str:
    """Return the diffusers directory of a format: `transformer` for the format of the pipeline, else its name."""
    return TRANSFORMER if name == REFERENCE else name


def single_file(release: str, name: str, suffix: str) -> str:
    """Name the single file of a format; it contains the model's name, as users store it among other models."""
    return f"{release}-{name}{suffix}"


def format_files(settings: Settings, proof: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return for each format its files in the release, keyed by their paths in runs/quantize/formats."""
    return {
        name: {made: _released(settings.release.name, name, made) for made in figures["files"]}
        for name, figures in proof["formats"].items()
    }


def checkpoint_file(formats: Mapping[str, Iterable[str]]) -> str:
    """Return the single file that both diffusers and ComfyUI load: safetensors without scales.

    formats: released files by format; bf16 is always among them.
    """
    return next(
        file
        for name, files in formats.items()
        for file in files
        if "/" not in file and file.endswith(".safetensors") and not name.endswith("_scaled")
    )


def gguf_file(formats: Mapping[str, Iterable[str]]) -> str | None:
    """Return the GGUF file to recommend: Q8_0, else another quantized one, else any; None if there is none.

    formats: released files by format.
    """
    ggufs = {name: file for name, files in formats.items() for file in files if file.endswith(".gguf")}
    order = sorted(ggufs, key=lambda name: (name != RECOMMENDED_GGUF, name in FLOAT_GGUFS))
    return ggufs[order[0]] if order else None


def release_files(root: Path, settings: Settings, proof: Mapping[str, Any]) -> dict[str, Path]:
    """Return path by name in the release of every file except those that `publish` writes itself.

    Raises:
        ArtifactError: a file of the run, a file of the base model or a licence text is missing.
        ConfigError: the format that the pipeline loads is not among the formats, or a licence text is outside `root`.
    """
    if REFERENCE not in proof["formats"]:
        raise ConfigError(
            f"quantize.formats has no {REFERENCE}, which the release's pipeline loads: add it and run "
            "'dvc repro'"
        )
    files = dict(_pipeline_files(require_existing(root, Path(settings.model.path))))
    for name, released in format_files(settings, proof).items():
        files |= {
            there: require_existing(root, artifacts.QUANTIZED / made) for made, there in released.items()
        }
        config = artifacts.QUANTIZED / name / "config.json"
        if (root / config).is_file():
            files[f"{format_directory(name)}/config.json"] = root / config
    if proof["lora"] is not None:
        files[artifacts.LORA_FILE] = require_existing(
            root, artifacts.QUANTIZED / LORA_FORMAT / artifacts.LORA_FILE
        )
    files |= {
        REPORT: require_existing(root, artifacts.REPORT),
        "decision.json": require_existing(root, artifacts.DECISION),
        "proof.json": require_existing(root, artifacts.PROOF),
    }
    files |= {name: require_existing(root, Path(name)) for name in ("params.yaml", "dvc.yaml", "dvc.lock")}
    return files | _licences(root, settings)


def require_existing(root: Path, path: Path) -> Path:
    """Return `root / path` if it exists. Raises `ArtifactError` otherwise."""
    if not (root / path).exists():
        raise ArtifactError(f"{path} is missing in {root.absolute()}: run 'dvc repro' there first")
    return root / path


def pipeline_class(root: Path, settings: Settings) -> str:
    """Return the name of the diffusers pipeline class of the base model."""
    return str(_model_index(require_existing(root, Path(settings.model.path)))["_class_name"])


def _released(release: str, name: str, made: str) -> str:
    path = PurePosixPath(made)
    if path.name == WEIGHTS:
        return f"{format_directory(name)}/{WEIGHTS}"
    return single_file(release, name, path.suffix)


def _licences(root: Path, settings: Settings) -> dict[str, Path]:
    """Return the licence texts by file name; nothing may be published without them."""
    files: dict[str, Path] = {}
    for name in settings.release.license_files:
        path = root / name
        if not path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"release.license_files names {name}, which is outside the checkout, and it would be published: copy the "
                "licence text into the checkout"
            )
        if not path.is_file() or not path.stat().st_size:
            raise ArtifactError(
                f"release.license_files names {name}, which is missing or empty: nothing is published without "
                "its licence text and the terms of its base model"
            )
        if path.name in files:
            raise ConfigError(f"release.license_files names two files called {path.name}: rename one")
        files[path.name] = path
    return files


def _pipeline_files(base: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files that model_index.json names, without the transformer; a directory of a hub may contain more."""
    yield MODEL_INDEX, require_existing(base, Path(MODEL_INDEX))
    for component, kind in _model_index(base).items():
        if component.startswith("_") or component == TRANSFORMER or None in kind:
            continue
        for path in sorted(require_existing(base, Path(component)).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(base)), path


def _model_index(base: Path) -> dict[str, Any]:
    path = require_existing(base, Path(MODEL_INDEX))
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {name: kind for name, kind in index.items() if isinstance(kind, str | list)}
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): restore the base model") from None
