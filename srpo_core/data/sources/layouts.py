"""What the columns of a table mean: rows to records.

`ingest.columns` maps a meaning to the name of a column. Without it, the columns of known data sets are recognised.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final, TypeVar

from srpo_core.data.choices import Choice
from srpo_core.data.records import LeftOut, Record, brief
from srpo_core.data.rules import Findings
from srpo_core.data.sources.cells import as_text, number, style
from srpo_core.data.sources.rows import Table
from srpo_core.errors import ConfigError, DataError

Columns = Mapping[Any, str]  # a meaning of `ingest.columns`, and the name of its column
Identities = dict[str, str]  # the id of an image, and the name of the image that had it first
_Given = TypeVar("_Given")
_Read = TypeVar("_Read")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """One way to say what people prefer. needs: meanings of columns; known: the columns of published data sets."""

    needs: frozenset[str]
    allows: frozenset[str]
    read: Callable[[Columns, Iterable[Record], Identities], Iterator[Choice]]
    known: tuple[Columns, ...] = ()


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


def read_table(
    layouts: Sequence[Layout], table: Table, columns: Columns, findings: Findings, identities: Identities
) -> Iterator[tuple[Choice, str]]:
    """Yield the records of a table, each with its style, in the order of the rows; bad ones are reported and left out.

    identities: of the tables of the split that were read before; those of this table are added.

    Raises:
        DataError: the table lacks a column, its columns are unknown, or a row breaks a rule and ends the run.
    """
    chosen = dict(columns or _recognise(layouts, table))
    if missing := sorted(set(chosen.values()) - set(table.columns)):
        raise DataError(
            f"{table.path}: has no column {missing[0]!r}, which ingest.columns names: it has {', '.join(table.columns)}"
        )
    layout = next(one for one in layouts if _fits(one, chosen))
    styles: dict[int, str] = {}
    images = sorted(_IMAGES & chosen.keys())
    embedded = {chosen[meaning] for meaning in images} & table.embedded
    values = dict.fromkeys(
        column for meaning, column in chosen.items() if meaning not in images or column not in embedded
    )
    uncompared = 0

    def with_meanings(row: Record) -> Record:
        nonlocal uncompared
        cells = {meaning: row.value.get(column) for meaning, column in chosen.items()}
        if str(cells.get("has_label")).lower() in ("false", "0", "0.0"):
            uncompared += 1
            raise LeftOut
        for meaning in images:
            cells[meaning] = _image(table, row, chosen[meaning])
        if "style" in chosen:
            styles[row.index] = style(row, cells["style"], chosen["style"])
        return Record(findings, row.file, row.index, cells)

    rows = _of_each(table.rows(list(values), findings), with_meanings)
    for choice in layout.read(chosen, rows, identities):
        yield choice, styles.pop(choice.record, "")
    if uncompared:
        findings.count_uncompared(str(table.path), uncompared)
        _log.warning(
            "%s: left out %d rows whose column %s says that nobody compared them",
            table.path,
            uncompared,
            chosen["has_label"],
        )


def _of_each(rows: Iterable[_Given], read: Callable[[_Given], _Read]) -> Iterator[_Read]:
    """Yield what is read from each row or group of rows, except for those that are left out."""
    for row in rows:
        try:
            found = read(row)
        except LeftOut:
            continue
        yield found


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


def _image(table: Table, row: Record, column: str) -> str:
    """Return the name of an image in the table, or its path below the data set, from that below the table's directory."""
    cell = row.value.get(column)
    if cell is None:
        row.refuse("broken_record", f"{column}: the row has no image there")
    name = row.check_image_name(cell, column, "")
    return name if column in table.embedded else str(PurePosixPath(table.name).parent / name)


def _choice(row: Record, prompt: str, images: tuple[str, ...], ranks: tuple[float, ...]) -> Choice:
    if len(set(images)) != len(images):
        row.refuse("image_name", f"the images must differ from each other, found {list(images)}")
    return Choice(row.file, row.index, row.check_prompt(row.value["prompt"], prompt), images, ranks)


def _read_prompts(columns: Columns, rows: Iterable[Record], _: Identities) -> Iterator[Choice]:
    return _of_each(rows, lambda row: _choice(row, columns["prompt"], (), ()))


def _read_captions(columns: Columns, rows: Iterable[Record], _: Identities) -> Iterator[Choice]:
    return _of_each(rows, lambda row: _choice(row, columns["prompt"], (row.value["image"],), (1,)))


def _read_chosen(columns: Columns, rows: Iterable[Record], _: Identities) -> Iterator[Choice]:
    def read(row: Record) -> Choice:
        return _choice(row, columns["prompt"], (row.value["chosen"], row.value["rejected"]), (1, 2))

    return _of_each(rows, read)


def _read_labelled(columns: Columns, rows: Iterable[Record], identities: Identities) -> Iterator[Choice]:
    """The greater label is preferred; equal labels are a tie."""

    def read(row: Record) -> Choice:
        labels = [number(row, row.value[one], columns[one]) for one in ("label_a", "label_b")]
        images = row.value["image_a"], row.value["image_b"]
        return _choice(row, columns["prompt"], images, (-labels[0], -labels[1]))

    return _of_each(_with_identities(rows, identities), read)


def _read_preferred(columns: Columns, rows: Iterable[Record], identities: Identities) -> Iterator[Choice]:
    """0, a or the first image's id: the first is preferred; 1, b or the second's id: the second; tie: neither."""

    def read(row: Record) -> Choice:
        cells = row.value
        value = cells["preferred"]
        given = as_text(int(value) if isinstance(value, bool) or value in (0.0, 1.0) else value)
        first = {"0", "a", "image_a", columns["image_a"], as_text(cells.get("id_a"))}
        second = {"1", "b", "image_b", columns["image_b"], as_text(cells.get("id_b"))}
        if given is None or ((given in first) == (given in second) and given != "tie"):
            row.refuse(
                "broken_record",
                f"{columns['preferred']}: must be 0, 1, a, b, tie, or the name or id of one of the images, found "
                f"{brief(value)}",
            )
        ranks = (1, 1) if given == "tie" else (1, 2) if given in first else (2, 1)
        return _choice(row, columns["prompt"], (cells["image_a"], cells["image_b"]), ranks)

    return _of_each(_with_identities(rows, identities), read)


def _with_identities(rows: Iterable[Record], identities: Identities) -> Iterator[Record]:
    """Yield rows in which an image with a known id has the name that it had first."""
    for row in rows:
        own = {
            image: identities.setdefault(identity, row.value[image])
            for image, key in (("image_a", "id_a"), ("image_b", "id_b"))
            if (identity := as_text(row.value.get(key)))
        }
        yield Record(row.findings, row.file, row.index, {**row.value, **own})


def _read_ranked(columns: Columns, rows: Iterable[Record], _: Identities) -> Iterator[Choice]:
    """Neighbouring rows of one group are a record; the lower rank is preferred."""
    key = "group" if "group" in columns else "prompt"

    def read(own: Sequence[Record]) -> Choice:
        first, prompts = own[0], {str(row.value["prompt"]) for row in own}
        if len(own) < 2 or len(prompts) > 1:  # noqa: PLR2004
            first.refuse(
                "broken_record", f"{columns[key]}: must have two or more neighbouring rows of one prompt"
            )
        ranks = tuple(number(row, row.value["rank"], columns["rank"]) for row in own)
        return _choice(first, columns["prompt"], tuple(row.value["image"] for row in own), ranks)

    groups = (list(several) for _, several in groupby(rows, key=lambda row: row.value[key]))
    return _of_each(groups, read)


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
