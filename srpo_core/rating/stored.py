"""Ratings as files: `data/ratings/<task>.parquet`, one row for each answer."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from srpo_core.artifacts import replacing
from srpo_core.errors import DataError
from srpo_core.rating.answers import Refused, as_row, checked
from srpo_core.rating.records import Rating

DIRECTORY: Final = Path("data/ratings")
QUARANTINE: Final = Path("data/ratings-quarantine.jsonl")  # below `artifacts.home()`, never versioned


def path_of(task: str) -> Path:
    """Return the file of a finished task."""
    return DIRECTORY / f"{task}.parquet"


def write_ratings(path: Path, ratings: Iterable[Rating]) -> None:
    """Write answers atomically, in an order that depends on them alone: the same answers give the same bytes.

    The order of the answers is that of rater, item and dimension, so the file does not show in which order raters came.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, kinds[kind]) for name, kind in Rating.__annotations__.items()])
    rows = sorted(map(as_row, ratings), key=lambda row: (row["rater"], row["item"], row["dimension"]))
    with replacing(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), partial, compression="zstd")


def read_ratings(
    paths: Sequence[Path], *, refused: Refused | None = None, items: Collection[str] | None = None
) -> list[Rating]:
    """Read the answers of files of `write_ratings`, in their order; what breaks a rule is set aside in `refused`.

    items: those of the task, if it is known. Without `refused` an answer that breaks a rule is an error.

    Raises:
        DataError: a file is missing, damaged or no table of ratings, or an answer breaks a rule.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[Rating] = []
    own = Refused() if refused is None else refused
    for path in paths:
        try:
            rows = pq.read_table(path).to_pylist()
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: 'srpo rate finish TASK' writes it") from None
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} is no table of ratings ({error}): fetch it again with 'dvc pull'"
            ) from None
        found += checked(rows, path.name, own, items=items, known=found)
    if refused is None and own.entries:
        raise DataError(own.summary())
    return found


def list_files(directory: Path) -> list[Path]:
    """List the files of finished tasks in a directory, by name; empty if it does not exist."""
    return sorted(directory.glob("*.parquet"))
