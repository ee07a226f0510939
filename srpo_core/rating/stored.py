"""Ratings as files: `data/ratings/<task>.parquet`, one row for each answer."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import replacing
from srpo_core.errors import DataError
from srpo_core.rating.answers import Refused, as_row, checked
from srpo_core.rating.records import Rating

if TYPE_CHECKING:
    import pyarrow as pa

DIRECTORY: Final = Path("data/ratings")
Key = tuple[str, str, str, str]
KEY: Final = ("task", "rater", "item", "dimension")  # one answer of each, the columns of `Key`
_ABOUT: Final = b"srpo.task"


@dataclass(frozen=True)
class About:
    """What the file of a finished task says about the task.

    models: digest of the weights by name, the model that is judged first. items: that each rater saw; raters: planned; complete:
    raters who answered all items. effect, power: of the plan. closed: why the task was closed before the planned end, or "".
    looked_early: whether results were seen before the end.
    """

    models: Mapping[str, str]
    items: int
    raters: int
    complete: int
    effect: float
    power: float
    closed: str = ""
    looked_early: bool = False


def path_of(task: str) -> Path:
    """Return the file of a finished task."""
    return DIRECTORY / f"{task}.parquet"


def write_ratings(path: Path, ratings: Iterable[Rating], about: About | None = None) -> None:
    """Write answers atomically, in an order that depends on them alone: the same answers give the same bytes.

    The order of the answers is that of rater, item and dimension, so the file does not show in which order raters came.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    note = {} if about is None else {_ABOUT: json.dumps(asdict(about))}
    schema = pa.schema([(name, kinds[kind]) for name, kind in Rating.__annotations__.items()], metadata=note)
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
    found: list[Rating] = []
    own = Refused() if refused is None else refused
    for path in paths:
        rows = _read_table(path).to_pylist()
        found += checked(rows, path.name, own, items=items, known=found)
    if refused is None and own.entries:
        raise DataError(own.summary())
    return found


def answers_in(path: Path) -> list[Key]:
    """Return which answers a file has, valid or not, in the order of its rows.

    Raises:
        DataError: the file is missing, damaged or no table of ratings.
    """
    return _keys(_read_table(path), path)


def keep_answers(path: Path, kept: Collection[Key]) -> None:
    """Delete the answers of a file, valid or not, that are not among `kept`.

    Raises:
        DataError: the file is missing, damaged or no table of ratings.
    """
    table = _read_table(path)
    _rewrite(path, table, [key in kept for key in _keys(table, path)])


def remove_answers(path: Path, rater: str) -> int:
    """Delete the answers of a rater from a file, valid or not, and return how many there were.

    Raises:
        DataError: the file is missing or damaged.
    """
    table = _read_table(path)
    kept = [name != rater for _, name, _, _ in _keys(table, path)]
    _rewrite(path, table, kept)
    return len(kept) - sum(kept)


def _keys(table: "pa.Table", path: Path) -> list[Key]:
    lacking = [name for name in KEY if name not in table.column_names]
    if lacking:
        raise DataError(f"{path} is no table of ratings: it has no column {', '.join(lacking)}")
    return list(zip(*(table[name].to_pylist() for name in KEY), strict=True))


def _rewrite(path: Path, table: "pa.Table", kept: Sequence[bool]) -> None:
    """Replace a file by some of its rows, unless they are all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not all(kept):
        with replacing(path) as partial:
            pq.write_table(table.filter(pa.array(kept, pa.bool_())), partial, compression="zstd")


def _read_table(path: Path) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: 'srpo rate finish TASK' writes it") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is no table of ratings ({error}): fetch it again with 'dvc pull'") from None


def read_about(path: Path) -> About:
    """Read what a file of `write_ratings` says about its task.

    Raises:
        DataError: the file is missing, damaged, or says nothing about its task.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        note: Any = json.loads((pq.read_schema(path).metadata or {})[_ABOUT])
        return About(**note)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: 'srpo rate finish TASK' writes it") from None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} says nothing about its task ({error!r}): write it again with 'srpo rate finish TASK'"
        ) from None


def list_files(directory: Path) -> list[Path]:
    """List the files of finished tasks in a directory, by name; empty if it does not exist."""
    return sorted(directory.glob("*.parquet"))
