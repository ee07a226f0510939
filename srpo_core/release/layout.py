"""Which file of a run becomes which file of a release."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.weights.files import WEIGHTS

# The format that the release's own pipeline loads.
PIPELINE_FORMAT: Final = "bf16"
# What a LoRA is called among the formats, and below runs/quantize/formats.
LORA_FORMAT: Final = "lora"
TRANSFORMER: Final = "transformer"
MODEL_INDEX: Final = "model_index.json"
CARD: Final = "README.md"
GRID: Final = "grid.png"
REPORT: Final = "report.html"

# The GGUF to begin with; float types are for conversion, and as large as the safetensors file.
FIRST_GGUF: Final = "q8_0"
WHOLE_GGUFS: Final = ("gguf_f16", "gguf_bf16")

WORKFLOW: Final = "workflow.json"
GGUF_WORKFLOW: Final = "workflow-gguf.json"

_DESCRIBING: Final = (CARD, GRID, WORKFLOW, GGUF_WORKFLOW, "params.yaml", "dvc.yaml")


def describing(settings: Settings) -> set[str]:
    """The files beside a version's content, which dvc.lock does not name: they may differ between two publications."""
    return {*_DESCRIBING, *(Path(name).name for name in settings.release.license_files)}


def format_directory(name: str) -> str:
    """Where a format's diffusers directory lies in a release: the pipeline's own transformer, or its name."""
    return TRANSFORMER if name == PIPELINE_FORMAT else name


def single_file(release: str, name: str, suffix: str) -> str:
    """What a format's single file is called in a release: as the model, where it is put among other models."""
    return f"{release}-{name}{suffix}"


def format_files(settings: Settings, proof: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """For each format the files in the release, by their names below runs/quantize/formats."""
    return {
        name: {made: _released(settings.release.name, name, made) for made in figures["files"]}
        for name, figures in proof["formats"].items()
    }


def checkpoint_file(formats: Mapping[str, Iterable[str]]) -> str:
    """Of the released files by format the single one that diffusers and ComfyUI open alike: safetensors without scales.

    A release has at least bf16's.
    """
    return next(
        file
        for name, files in formats.items()
        for file in files
        if "/" not in file and file.endswith(".safetensors") and not name.endswith("_scaled")
    )


def gguf_file(formats: Mapping[str, Iterable[str]]) -> str | None:
    """Of the released files by format the GGUF to begin with: Q8_0, or another quantized one, or any; None without one."""
    ggufs = {name: file for name, files in formats.items() for file in files if file.endswith(".gguf")}
    order = sorted(ggufs, key=lambda name: (name != FIRST_GGUF, name in WHOLE_GGUFS))
    return ggufs[order[0]] if order else None


def release_files(root: Path, settings: Settings, proof: Mapping[str, Any]) -> dict[str, Path]:
    """Name in the release to path of everything but what publishing writes itself.

    Raises:
        ArtifactError: a file of the run or of the base model is missing, or a licence text.
        ConfigError: the formats lack the one of the pipeline.
    """
    if PIPELINE_FORMAT not in proof["formats"]:
        raise ConfigError(
            f"quantize.formats lacks {PIPELINE_FORMAT}, which the release's pipeline loads: add it and run "
            "'dvc repro'"
        )
    files = dict(_pipeline_files(existing(root, Path(settings.model.path))))
    for name, released in format_files(settings, proof).items():
        files |= {there: existing(root, artifacts.QUANTIZED / made) for made, there in released.items()}
        config = artifacts.QUANTIZED / name / "config.json"
        if (root / config).is_file():
            files[f"{format_directory(name)}/config.json"] = root / config
    if proof["lora"] is not None:
        files[artifacts.LORA_FILE] = existing(root, artifacts.QUANTIZED / LORA_FORMAT / artifacts.LORA_FILE)
    files |= {
        REPORT: existing(root, artifacts.REPORT),
        "decision.json": existing(root, artifacts.DECISION),
        "proof.json": existing(root, artifacts.PROOF),
    }
    files |= {name: existing(root, Path(name)) for name in ("params.yaml", "dvc.yaml", "dvc.lock")}
    return files | _licences(root, settings)


def existing(root: Path, path: Path) -> Path:
    """`path` below `root`, or an `ArtifactError` that says how to make it."""
    if not (root / path).exists():
        raise ArtifactError(f"{path} is missing in {root.absolute()}: run 'dvc repro' there first")
    return root / path


def pipeline_class(root: Path, settings: Settings) -> str:
    """The diffusers class of the base's pipeline."""
    return str(_model_index(existing(root, Path(settings.model.path)))["_class_name"])


def _released(release: str, name: str, made: str) -> str:
    path = PurePosixPath(made)
    if path.name == WEIGHTS:
        return f"{format_directory(name)}/{WEIGHTS}"
    return single_file(release, name, path.suffix)


def _licences(root: Path, settings: Settings) -> dict[str, Path]:
    """The licence texts, by their own names; without one nothing may be published."""
    files: dict[str, Path] = {}
    for name in settings.release.license_files:
        path = root / name
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
    """What the pipeline's index names, without the transformer; a hub's directory may hold more."""
    yield MODEL_INDEX, existing(base, Path(MODEL_INDEX))
    for component, kind in _model_index(base).items():
        if component.startswith("_") or component == TRANSFORMER or None in kind:
            continue
        for path in sorted(existing(base, Path(component)).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(base)), path


def _model_index(base: Path) -> dict[str, Any]:
    path = existing(base, Path(MODEL_INDEX))
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return {name: kind for name, kind in index.items() if isinstance(kind, str | list)}
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): restore the base model") from None
