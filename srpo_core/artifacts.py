"""The output files of each stage, and functions to read and write them.

Stages exchange data only through these files. Writes are atomic and deterministic: without times and with sorted keys,
so the same input gives the same bytes.
"""

import hashlib
import json
import os
import stat
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
CAPTIONS = RUNS / "ingest/captions.parquet"  # only of a data set of images with captions
IMAGES = RUNS / "ingest/images"
VALIDATION = RUNS / "ingest/validation.json"
QUARANTINE = RUNS / "ingest/quarantine.jsonl"
EMBEDDINGS = RUNS / "embed"
ROLLOUTS = RUNS / "rollouts"
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

_PRIVATE: Final = 0o700
_OF_OTHERS: Final = 0o077


def home() -> Path:
    """Return the absolute directory of all files that are not outputs: `SRPO_HOME`, or else .srpo.

    It is created if it is missing, and only this user can enter it: it holds the secret of the Prefect server, untracked
    files of the checkout, and the pickles of DVC's index.

    Raises:
        ConfigError: see `private_home`.
    """
    return private_home(user_path(os.environ.get("SRPO_HOME", ".srpo")))


def evaluation_directory(checkpoint: Path) -> Path:
    """Return where the evaluation of a checkpoint outside the stage graph writes."""
    return home() / "evaluations" / checkpoint.name


def private_home(path: Path) -> Path:
    """Create the directory that `home` returns with mode 0700, or close it to others if it exists; return `path`.

    Raises:
        ConfigError: the directory, or a file of DVC's index in it that was open to others, belongs to another user.
    """
    path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    if stat.S_IMODE(_owned(path, path.stat()).st_mode) & _OF_OTHERS:
        path.chmod(_PRIVATE)
        for file in (path / "dvc").rglob("*"):
            _owned(file, file.lstat())
    return path


def private_temporary_directory(path: Path) -> Path:
    """Create a directory with mode 0700 in a directory that everybody can write to, or take an existing one.

    Raises:
        ConfigError: an existing one was made by another user, is a link, or lets others in.
    """
    path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    found = _owned(path, path.lstat())
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & _OF_OTHERS:
        raise ConfigError(
            f"{path} is a link, or others can enter it, so its content cannot be trusted: remove it"
        )
    return path


def _owned(path: Path, found: os.stat_result) -> os.stat_result:
    """Raise `ConfigError` if a file belongs to another user, who could change what is read from it."""
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"{path} belongs to user {found.st_uid} and not to you (user {os.geteuid()}), so its content cannot be "
            "trusted: remove it, or set SRPO_HOME and TMPDIR to directories of your own"
        )
    return found


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


def saved_steps(root: Path = Path()) -> list[int]:
    """List the steps of the checkpoints that training saved in the run at `root`, ascending.

    Raises:
        ArtifactError: there are none.
    """
    saved = root / CHECKPOINTS
    if not saved.exists():
        raise ArtifactError(f"{saved} is missing: run 'dvc repro train' first")
    steps = sorted(
        int(path.name.removeprefix(STEP_PREFIX)) for path in saved.glob(f"{STEP_PREFIX}*") if path.is_dir()
    )
    if not steps:
        raise ArtifactError(f"{saved} holds no checkpoint: run 'dvc repro --force train'")
    return steps


def step_name(step: int) -> str:
    """Return the name of what belongs to the checkpoint after `step` optimizer steps."""
    return f"{STEP_PREFIX}{step:06d}"


def step_directory(step: int) -> Path:
    """Return the directory of the exported checkpoint after `step` optimizer steps."""
    return CHECKPOINTS / step_name(step)
