"""What the columns of a table mean: rows to records.

`ingest.columns` maps a meaning to the name of a column. Without it, the columns of known data sets are recognised.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final, NoReturn

from srpo_core.data.choices import Choice
from srpo_core.data.sources.rows import Row, Table
from srpo_core.errors import ConfigError, DataError

Columns = Mapping[Any, str]  # a meaning of `ingest.columns`, and the name of its column
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """One way to say what people prefer. needs: meanings of columns; known: the columns of published data sets."""

    needs: frozenset[str]
    allows: frozenset[str]
    read: Callable[[Columns, Iterable[Row]], Iterator[Choice]]
    known: tuple[Columns, ...] = ()


def _refuse(row: Row, detail: str) -> NoReturn:
    raise DataError(f"{row.file}: record {row.record}: {detail}")


def require_columns(layouts: Sequence[Layout], columns: Columns) -> None:
    """Require that `ingest.columns` is empty or fits one of the layouts.

    Raises:
        ConfigError: it does not; the message lists what would.
    """
    if columns and not any(_fits(layout, columns) for layout in layouts):
        known = "; or ".join(", ".join(sorted(layout.needs)) for layout in layouts)
        raise ConfigError(
            f"ingest.columns has {', '.join(sorted(columns))}: it must have {known} (optional: "
            f"{', '.join(sorted(frozenset().union(*(layout.allows for layout in layouts))))})"
        )


def read_table(layouts: Sequence[Layout], table: Table, columns: Columns) -> Iterator[tuple[Choice, str]]:
    """Yield the records of a table, each with its style, in the order of the rows.

    Raises:
        DataError: the table lacks a column, its columns are unknown, or a row breaks a rule.
    """
    chosen = dict(columns or _recognise(layouts, table))
    if missing := sorted(set(chosen.values()) - set(table.columns)):
        raise DataError(
            f"{table.path}: has no column {missing[0]!r}, which ingest.columns names: it has {', '.join(table.columns)}"
        )
    layout = next(one for one in layouts if _fits(one, chosen))
    styles: dict[int, str] = {}

    def rows() -> Iterator[Row]:
        for row in table.rows(list(dict.fromkeys(chosen.values()))):
            cells = {meaning: row.cells.get(column) for meaning, column in chosen.items()}
            for meaning in _IMAGES & chosen.keys():
                if chosen[meaning] not in table.embedded:
                    cells[meaning] = _beside(table, row, chosen[meaning])
            if "style" in chosen:
                styles[row.record] = str(cells["style"])
            yield Row(row.file, row.record, cells)

    for choice in layout.read(chosen, rows()):
        yield choice, styles.pop(choice.record, "")


_IMAGES: Final = frozenset({"image", "image_a", "image_b", "chosen", "rejected"})


def _fits(layout: Layout, columns: Columns) -> bool:
    return layout.needs <= columns.keys() <= layout.needs | layout.allows


def _recognise(layouts: Sequence[Layout], table: Table) -> Columns:
    for layout in layouts:
        for known in layout.known:
            if set(known.values()) <= set(table.columns):
                return known
    needed = sorted(layouts[0].needs)
    example = ", ".join(f"{meaning}: ..." for meaning in needed)
    raise DataError(
        f"{table.path}: its columns are those of no known data set: {', '.join(table.columns)}. Say which holds what in "
        f"ingest.columns, for instance {{{example}}} (docs/data.md)"
    )


def _beside(table: Table, row: Row, column: str) -> str:
    """Return the path of an image below the data set, from its path below the directory of the table."""
    name = _text(row, row.cells.get(column), column)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        _refuse(row, f"{column}: {name!r} is not a plain relative path")
    return str(PurePosixPath(table.name).parent / path)


def _text(row: Row, value: Any, column: str) -> str:
    if not isinstance(value, str):
        _refuse(row, f"{column}: must be a text, not {type(value).__name__}")
    if not value.strip():
        _refuse(row, f"{column}: is empty")
    return value


def _number(row: Row, value: Any, column: str) -> float:
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < math.inf:
        _refuse(row, f"{column}: must be a finite number, found {value!r}")
    return float(number)


def _choice(row: Row, prompt: str, images: tuple[str, ...], ranks: tuple[float, ...]) -> Choice:
    if len(set(images)) != len(images):
        _refuse(row, f"the images must differ from each other, found {list(images)}")
    return Choice(row.file, row.record, _text(row, row.cells["prompt"], prompt), images, ranks)


def _read_prompts(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    for row in rows:
        yield _choice(row, columns["prompt"], (), ())


def _read_captions(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    for row in rows:
        yield _choice(row, columns["prompt"], (row.cells["image"],), (1,))


def _read_chosen(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    for row in rows:
        yield _choice(row, columns["prompt"], (row.cells["chosen"], row.cells["rejected"]), (1, 2))


def _read_labelled(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    """The greater label is preferred; equal labels are a tie."""
    for row, images in _with_identities(columns, rows):
        labels = [_number(row, row.cells[one], columns[one]) for one in ("label_a", "label_b")]
        yield _choice(row, columns["prompt"], images, (-labels[0], -labels[1]))


def _read_preferred(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    """0, a or the first image's id: the first is preferred; 1, b or the second's id: the second; tie: neither."""
    for row, images in _with_identities(columns, rows):
        value = row.cells["preferred"]
        given = str(int(value) if isinstance(value, bool) or value in (0.0, 1.0) else value).strip()
        first = {"0", "a", "image_a", columns["image_a"], str(row.cells.get("id_a"))}
        second = {"1", "b", "image_b", columns["image_b"], str(row.cells.get("id_b"))}
        if (given in first) == (given in second) and given != "tie":
            _refuse(
                row,
                f"{columns['preferred']}: must be 0, 1, a, b, tie, or the name or id of one of the images, found {value!r}",
            )
        ranks = (1, 1) if given == "tie" else (1, 2) if given in first else (2, 1)
        yield _choice(row, columns["prompt"], images, ranks)


def _with_identities(columns: Columns, rows: Iterable[Row]) -> Iterator[tuple[Row, tuple[str, str]]]:
    """Yield labelled rows with their images; an image with a known id has the name that it had first."""
    names: dict[str, str] = {}
    unlabelled = 0
    for row in rows:
        if "has_label" in columns and str(row.cells["has_label"]).lower() in ("false", "0", "0.0"):
            unlabelled += 1
            continue
        images = [row.cells["image_a"], row.cells["image_b"]]
        for place, key in enumerate(("id_a", "id_b")):
            if row.cells.get(key):
                images[place] = names.setdefault(str(row.cells[key]), images[place])
        yield row, (images[0], images[1])
    if unlabelled:
        _log.warning(
            "left out %d rows whose column %s says that nobody compared them",
            unlabelled,
            columns["has_label"],
        )


def _read_ranked(columns: Columns, rows: Iterable[Row]) -> Iterator[Choice]:
    """Neighbouring rows of one group are a record; the lower rank is preferred."""
    key = "group" if "group" in columns else "prompt"
    for _, several in groupby(rows, key=lambda row: row.cells[key]):
        own = list(several)
        prompts = {row.cells["prompt"] for row in own}
        if len(own) < 2 or len(prompts) > 1:  # noqa: PLR2004
            _refuse(own[0], f"{columns[key]}: must have two or more neighbouring rows of one prompt")
        ranks = tuple(_number(row, row.cells["rank"], columns["rank"]) for row in own)
        yield _choice(own[0], columns["prompt"], tuple(row.cells["image"] for row in own), ranks)


_STYLE: Final = frozenset({"style"})
_PAIR: Final = frozenset({"prompt", "image_a", "image_b"})
_PICK_A_PIC: Final = MappingProxyType(
    {
        "prompt": "caption",
        "image_a": "jpg_0",
        "image_b": "jpg_1",
        "label_a": "label_0",
        "label_b": "label_1",
        "has_label": "has_label",
        "id_a": "image_0_uid",
        "id_b": "image_1_uid",
    }
)
_HPDV3: Final = MappingProxyType({"prompt": "prompt", "chosen": "path1", "rejected": "path2"})
_IMAGE_REWARD: Final = MappingProxyType(
    {"prompt": "prompt", "image": "image_path", "rank": "rank", "group": "prompt_id"}
)
_CHOSEN: Final = tuple(
    MappingProxyType({"prompt": prompt, "chosen": "chosen", "rejected": "rejected"})
    for prompt in ("prompt", "caption")
)
_WEBDATASET: Final = tuple(
    MappingProxyType({"prompt": prompt, "image_a": first, "image_b": second, "preferred": preferred})
    for prompt in ("txt", "prompt", "caption")
    for first, second in (("0.jpg", "1.jpg"), ("jpg_0", "jpg_1"), ("0.png", "1.png"), ("image_0", "image_1"))
    for preferred in ("cls", "preferred")
)

PAIRS: Final = (
    Layout(
        _PAIR | {"label_a", "label_b"},
        _STYLE | {"has_label", "id_a", "id_b"},
        _read_labelled,
        (
            _PICK_A_PIC,
            MappingProxyType(
                {key: _PICK_A_PIC[key] for key in ("prompt", "image_a", "image_b", "label_a", "label_b")}
            ),
        ),
    ),
    Layout(_PAIR | {"preferred"}, _STYLE | {"has_label", "id_a", "id_b"}, _read_preferred, _WEBDATASET),
    Layout(frozenset({"prompt", "chosen", "rejected"}), _STYLE, _read_chosen, (_HPDV3, *_CHOSEN)),
    Layout(frozenset({"prompt", "image", "rank"}), _STYLE | {"group"}, _read_ranked, (_IMAGE_REWARD,)),
)
PROMPTS: Final = (
    Layout(
        frozenset({"prompt"}),
        _STYLE,
        _read_prompts,
        tuple(MappingProxyType({"prompt": name}) for name in ("prompt", "caption", "text", "Prompt", "txt")),
    ),
)
CAPTIONS: Final = (
    Layout(
        frozenset({"prompt", "image"}),
        _STYLE,
        _read_captions,
        tuple(
            MappingProxyType({"prompt": prompt, "image": image})
            for image in ("file_name", "image", "jpg", "png", "webp", "jpeg")
            for prompt in ("text", "caption", "prompt", "txt")
        ),
    ),
)
