"""The output files of each stage, and functions to read and write them.

Stages exchange data only through these files. Writes are atomic and deterministic: without times and with sorted keys,
so the same input gives the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from srpo_core.errors import ArtifactError, ConfigError

RUNS = Path("runs")

# names of the models in the tables of stage evaluate
BASE: Final = "base"
ALIGNED: Final = "aligned"
CHAMPION: Final = "champion"
MODELS: Final = (BASE, ALIGNED, CHAMPION)

PROMPTS = RUNS / "ingest/prompts.parquet"
PAIRS = RUNS / "ingest/pairs.parquet"
IMAGES = RUNS / "ingest/images"
VALIDATION = RUNS / "ingest/validation.json"
EMBEDDINGS = RUNS / "embed"
AGREEMENT = RUNS / "check_reward/agreement.json"
CHECKPOINTS = RUNS / "train/checkpoints"
SAMPLES = RUNS / "train/samples"
TRAIN_LOG = RUNS / "train/log"
TRAIN_OUTCOME = RUNS / "train/outcome.json"
SELECTION = RUNS / "select/selection.json"
SELECT_SCORES = RUNS / "select/scores.parquet"
EVALUATION = RUNS / "evaluate/images.parquet"
FIGURES = RUNS / "evaluate/figures.parquet"
EVALUATION_SUMMARY = RUNS / "evaluate/summary.json"
DECISION = RUNS / "gate/decision.json"
GATE_FIGURES = RUNS / "gate/figures.json"
REPORT = RUNS / "report/report.html"
GRID = RUNS / "report/grid.png"
QUANTIZED = RUNS / "quantize/formats"
PROOF = RUNS / "quantize/proof.json"

STEP_PREFIX = "step-"
# next to the weights of a checkpoint; the name that `load_lora_weights` of diffusers expects
LORA_FILE = "pytorch_lora_weights.safetensors"


def home() -> Path:
    """Return the absolute directory of all files that are not outputs: `SRPO_HOME`, or else .srpo."""
    return user_path(os.environ.get("SRPO_HOME", ".srpo"))


def user_path(text: str | Path) -> Path:
    """Return a path from the environment as an absolute path; `~` is the home directory, as in a shell.

    Raises:
        ConfigError: it names the home directory of a user that this machine does not know.
    """
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(
            f"{text} names the home directory of an unknown user: write the whole path"
        ) from None


def require(path: Path) -> Path:
    """Return `path` if it exists; otherwise raise an `ArtifactError` that names the stage to run."""
    if path.exists():
        return path
    stage = path.parts[1] if path.parts[:1] == RUNS.parts and len(path.parts) > 1 else None
    advice = f"run 'dvc repro {stage}' first" if stage else "check the path in params.yaml"
    raise ArtifactError(f"{path} is missing: {advice}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it replaces `path` if no exception is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> Any:
    """Read a JSON output of a stage. Raises `ArtifactError` if it is missing or damaged."""
    try:
        return json.loads(require(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged ({error}): remove it and run 'dvc repro' again") from None


def read_table(path: Path, *, without: Collection[str] = ()) -> Any:
    """Read a parquet file as a `pyarrow.Table`, without the columns `without`.

    Raises `ArtifactError` if it is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require(path)
    try:
        names = pq.read_schema(path).names
        return pq.read_table(path, columns=[name for name in names if name not in without])
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{path} is damaged ({reason}): remove it and run 'dvc repro' again") from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def step_name(step: int) -> str:
    """Return the name of what belongs to the checkpoint after `step` optimizer steps."""
    return f"{STEP_PREFIX}{step:06d}"


def step_directory(step: int) -> Path:
    """Return the directory of the exported checkpoint after `step` optimizer steps."""
    return CHECKPOINTS / step_name(step)
