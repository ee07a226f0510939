"""Which file of a run becomes which file of a release."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from srpo_core import artifacts
from srpo_core.config import Settings
from srpo_core.errors import ArtifactError, ConfigError

# The format that the release's own pipeline loads.
PIPELINE_FORMAT: Final = "bf16"
TRANSFORMER: Final = "transformer"
MODEL_INDEX: Final = "model_index.json"
CARD: Final = "README.md"

# Beside the version's content: they may differ in a comment or a sentence between two publications.
DESCRIBING: Final = (CARD, "params.yaml", "dvc.yaml", "LICENSE", "NOTICE")


def format_directory(name: str) -> str:
    """Where a format lies in a release: the pipeline's own transformer, or a directory of its name."""
    return TRANSFORMER if name == PIPELINE_FORMAT else name


def release_files(root: Path, settings: Settings, proof: Mapping[str, Any]) -> dict[str, Path]:
    """Name in the release to path of everything but card and manifest.

    Raises:
        ArtifactError: a file of the run or of the base model is missing.
        ConfigError: the formats lack the one of the pipeline.
    """
    if PIPELINE_FORMAT not in proof["formats"]:
        raise ConfigError(
            f"quantize.formats lacks {PIPELINE_FORMAT}, which the release's pipeline loads: add it and run "
            "'dvc repro'"
        )
    files = dict(_pipeline_files(existing(root, Path(settings.model.path))))
    for name in proof["formats"]:
        directory = existing(root, artifacts.QUANTIZED / name)
        files |= {f"{format_directory(name)}/{path.name}": path for path in sorted(directory.iterdir())}
    files |= {
        "report.html": existing(root, artifacts.REPORT),
        "grid.png": existing(root, artifacts.GRID),
        "decision.json": existing(root, artifacts.DECISION),
        "proof.json": existing(root, artifacts.PROOF),
    }
    files |= {name: existing(root, Path(name)) for name in ("params.yaml", "dvc.yaml", "dvc.lock")}
    return files | {name: root / name for name in ("LICENSE", "NOTICE") if (root / name).is_file()}


def existing(root: Path, path: Path) -> Path:
    """`path` below `root`, or an `ArtifactError` that says how to make it."""
    if not (root / path).exists():
        raise ArtifactError(f"{path} is missing in {root.absolute()}: run 'dvc repro' there first")
    return root / path


def pipeline_class(root: Path, settings: Settings) -> str:
    """The diffusers class of the base's pipeline."""
    return str(_model_index(existing(root, Path(settings.model.path)))["_class_name"])


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
