"""Mutated rows of every kind of table: each is read as it was written, or is set aside once, or was not compared."""

import csv
import io
import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz
from hypothesis import Phase
from hypothesis import strategies as st
from readable_text import is_text

from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import PAIRS, PROMPTS, read_table
from srpo_core.data.sources.rows import SUFFIXES, open_table
from srpo_core.errors import DataError

EXAMPLES, LEAST, MOST = 25, 20, 40
STOPS = 3  # of the broken rows of a table, how many are read without the others
MEANINGS = ("prompt", "image_a", "image_b", "preferred", "id_a", "id_b", "style", "has_label")
JSON = {".json", ".jsonl"}
NAN = float("nan")
NO_TEXT = [
    None,
    "",
    " \t",
    "\u200b",
    "\ud83d",
    "a\0b",
    "\x1c\x1d",
    b"caf\xe9",
    b"\xff\xfe",
    [],
    {"a": 1},
    NAN,
]
PROMPT = st.sampled_from(
    ["a cat", "caf\u00e9", " a  dog ", "a\nfox", "x" * 4000, "x" * 4001, 5, *NO_TEXT]
) | st.text(st.characters(exclude_categories=()), max_size=6)
VOTE = st.sampled_from(
    [
        "0",
        "1",
        "a",
        "b",
        "tie",
        " a",
        "left",
        "image_b",
        "u1",
        "u2",
        "None",
        "nan",
        "2",
        0,
        1,
        1.0,
        True,
        2,
        *NO_TEXT,
    ]
)
ID = st.sampled_from(["u1", "u2", " u1", "0", "b", 7, 0, True, *NO_TEXT])
STYLE = st.sampled_from(["x", " x ", 3, True, *NO_TEXT])
LABEL = st.sampled_from([True, "true", 1, None, "", False, "False", 0, "0.0"])
# the name that is meant, None if there is none; {} is the number of the row
NAMES = {
    "{}.jpg": "{}.jpg",
    "./d//{}.png": "d/{}.png",
    "caf\u00e9 {}": "caf\u00e9 {}",
    "same.jpg": "same.jpg",
}
NAMES |= dict.fromkeys(["../{}", "/{}", "{}/", ".", "n" * 300])
IMAGE = st.sampled_from([*NAMES, *(one for one in NO_TEXT if one is None or isinstance(one, str | bytes))])
USUAL = {"prompt": "a cat", "image_a": "{}.jpg", "image_b": "b{}.jpg", "preferred": "a"}
USUAL |= {"id_a": "left {}", "id_b": "right {}", "style": "x", "has_label": True}
NAMES["b{}.jpg"] = "b{}.jpg"
CHANGES = {"prompt": PROMPT, "image_a": IMAGE, "image_b": IMAGE, "preferred": VOTE}
CHANGES |= {"id_a": ID, "id_b": ID, "style": STYLE, "has_label": LABEL}
ROWS = st.lists(
    st.lists(
        st.sampled_from(MEANINGS).flatmap(lambda meaning: st.tuples(st.just(meaning), CHANGES[meaning])),
        max_size=3,
    ).map(lambda changes: USUAL | dict(changes))
    | st.sampled_from(["junk 0", "junk 1", "junk 2"]),
    min_size=LEAST,
    max_size=MOST,
)
JUNK = {
    ".json": ['{"prompt": 1, "prompt": 2}', "[1]", "9" * 5000],
    ".jsonl": ['{"prompt": 1, "prompt": 2}', '{"prompt": "a"', "[" * 1200 + "]" * 1200],
    ".csv": ["one,two", "1,2,3,4,5,6,7,8,9", "\udcff"],
    ".tsv": ["one\ttwo", "1\t2\t3\t4\t5\t6\t7\t8\t9", "\udcff"],
}


def stored(cell):
    """Return a cell as the bytes of a text, None if it is empty."""
    if cell is None or isinstance(cell, bytes):
        return cell
    return (cell if isinstance(cell, str) else json.dumps(cell)).encode("utf-8", "surrogatepass")


def as_bytes(text):
    return text.encode("utf-8", "surrogateescape")


def write_json(path, rows):
    def line(row):
        if isinstance(row, str):
            return as_bytes(row)
        cells = {key: "\ufffe" if isinstance(value, bytes) else value for key, value in row.items()}
        text = json.dumps({key: value for key, value in cells.items() if value is not None}).encode()
        found = [value for value in row.values() if isinstance(value, bytes)]
        return text.replace(b"\\ufffe", found[0]) if found else text

    lines = [line(row) for row in rows]
    path.write_bytes(
        b"\n".join(lines) + b"\n" if path.suffix == ".jsonl" else b"[" + b",\n".join(lines) + b"]"
    )


def write_csv(path, rows):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    writer.writerow(MEANINGS)
    for row in rows:
        if isinstance(row, str):
            file.write(row + "\r\n")
        else:
            writer.writerow(
                [(stored(cell) or b"").decode("utf-8", "surrogateescape") for cell in row.values()]
            )
    path.write_bytes(as_bytes(file.getvalue()))


def write_parquet(path, rows):
    columns = {meaning: [stored(row[meaning]) for row in rows] for meaning in MEANINGS}
    columns["image_a"] = columns["image_b"] = [b"an image"] * len(rows)
    pq.write_table(pa.table({key: pa.array(cells, pa.binary()) for key, cells in columns.items()}), path)


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            for meaning, cell in row.items():
                content = stored(cell)
                if content is not None:
                    member = tarfile.TarInfo(f"{number:05d}.{meaning}{'.jpg' if 'image' in meaning else ''}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def write_text(path, rows):
    path.write_bytes(b"\n".join(stored(row["prompt"]) for row in rows) + b"\n")


WRITERS = {
    ".json": write_json,
    ".jsonl": write_json,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
    ".tar": write_tar,
    ".txt": write_text,
}


def suited(kind, rows):
    """Return the rows that a file of this kind can hold without being broken as a whole, a usual one first."""
    chosen = [USUAL]
    for row in rows:
        if isinstance(row, str):
            chosen += [JUNK[kind][int(row[-1])]] if kind in JUNK else []
            continue
        if kind == ".json" and any(isinstance(cell, bytes) for cell in row.values()):
            continue
        if kind == ".txt":
            line = (stored(row["prompt"]) or b"").replace(b"\n", b" ").replace(b"\r", b" ")
            if line.strip(b" \t"):
                chosen.append({"prompt": line})
            continue
        chosen.append(row)
    return [
        row if isinstance(row, str) else {key: numbered(cell, number) for key, cell in row.items()}
        for number, row in enumerate(chosen)
    ]


def numbered(cell, number):
    return cell.replace("{}", str(number)) if isinstance(cell, str) else cell


class Broken(Exception):  # noqa: N818  # no error: what a test expects
    """A row that must be set aside."""


def require(condition):
    if not condition:
        raise Broken


def meant(kind, row):
    """Return the cells of a row as the kind of file can say them."""
    require(not isinstance(row, str))
    if kind in JSON:
        require(not any(isinstance(cell, bytes) for cell in row.values()))
        return row
    if kind in {".parquet", ".tar"}:  # the images are in the file
        row = {key: "" if "image" in key and cell is not None else cell for key, cell in row.items()}
    try:
        cells = {key: None if stored(cell) is None else stored(cell).decode() for key, cell in row.items()}
    except UnicodeDecodeError:
        raise Broken from None
    if kind == ".tar":
        return {key: cell and cell.removeprefix("\ufeff").strip() for key, cell in cells.items()}
    return {key: cell or "" for key, cell in cells.items()} if kind in {".csv", ".tsv"} else cells


def as_text(cell):
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or cell != cell:  # noqa: PLR0124
        return None
    return str(cell).strip() or None


def image_of(kind, cells, meaning, number):
    if kind == ".parquet":
        return f"t.parquet/{number:010d}.{meaning}"
    cell = cells[meaning]
    if kind == ".tar":
        require(cell is not None)
        return f"t.tar/{number:05d}.{meaning}.jpg"
    require(is_text(cell))
    pattern = next((one for one in NAMES if numbered(one, number) == cell), None)
    require(pattern is not None and NAMES[pattern] is not None)
    return numbered(NAMES[pattern], number)


def prompt_of(cells):
    require(is_text(cells["prompt"]) and len(cells["prompt"]) <= 4000)
    return cells["prompt"]


def expected_of(kind, row, number, names):
    """Return (prompt, images, ranks, style) of a row, or None if it was not compared. names: of images by id."""
    cells = meant(kind, row)
    if kind == ".txt":
        return prompt_of(cells), (), (), ""
    if str(cells["has_label"]).lower() in ("false", "0", "0.0"):
        return None
    images = [image_of(kind, cells, meaning, number) for meaning in ("image_a", "image_b")]
    style, text = cells["style"], as_text(cells["style"])
    empty = style is None or style != style or (isinstance(style, str) and not style.strip())  # noqa: PLR0124
    require(empty or is_text(text))
    ids = [as_text(cells[key]) for key in ("id_a", "id_b")]
    images = [names.setdefault(one, image) if one else image for one, image in zip(ids, images, strict=True)]
    vote = cells["preferred"]
    vote = as_text(int(vote) if isinstance(vote, bool | float | int) and vote in (0, 1) else vote)
    column = "image_{}.jpg" if kind == ".tar" else "image_{}"
    votes = [{"01"[at], "ab"[at], f"image_{'ab'[at]}", column.format("ab"[at]), ids[at]} for at in (0, 1)]
    chosen = [vote in one for one in votes]
    require(vote is not None and (vote == "tie" or chosen in ([True, False], [False, True])))
    require(images[0] != images[1])
    ranks = (1, 1) if vote == "tie" else (1, 2) if chosen[0] else (2, 1)
    return prompt_of(cells), tuple(images), ranks, text or ""


def read(path, rows, findings):
    """Write a table, and read (prompt, images, ranks, style) of its records by their number."""
    kind = path.suffix
    WRITERS[kind](path, rows)
    columns = {one: f"{one}.jpg" if kind == ".tar" and "image" in one else one for one in MEANINGS}
    layouts, columns = (PROMPTS, {"prompt": "text"}) if kind == ".txt" else (PAIRS, columns)
    return {
        choice.record: (choice.prompt, choice.images, choice.ranks, style)
        for choice, style in read_table(layouts, open_table(path, path.name), columns, findings, {})
    }


def check_stop(path, rows, ingest, record, rule):
    """Require that reading the rows ends in one line, which names the record and the rule."""
    findings = Findings(ingest.model_copy(update={"on_bad_record": "stop"}), None)
    with pytest.raises(DataError) as stopped:
        read(path, rows, findings)
    line = str(stopped.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: record {record}: ")
    assert f"this one breaks the rule {rule})" in findings.way_out()


def check(path, rows, ingest, seen):
    kind, quarantine = path.suffix, io.StringIO()
    findings = Findings(ingest, quarantine)
    found = read(path, rows, findings)
    entries = [json.loads(line) for line in quarantine.getvalue().splitlines()]
    set_aside = Counter(entry["record"] for entry in entries)
    assert all(entry["file"] == str(path) and entry["detail"].isprintable() for entry in entries)
    assert not any("Unreadable(" in entry["text"] for entry in entries)
    names, expected, broken, uncompared = {}, {}, Counter(), 0
    for number, row in enumerate(rows):
        try:
            one = expected_of(kind, row, number, names)
        except Broken:
            broken[number] += 1
            continue
        uncompared += one is None
        if one is not None:
            expected[number] = one
    assert found == expected
    assert set_aside == broken
    assert findings.summary()["read"] == {str(path): len(rows)}
    assert sum(findings.summary().get("uncompared", {}).values()) == uncompared
    good = [row for number, row in enumerate(rows) if number not in broken]
    for number, entry in enumerate(entries):
        if not number:
            check_stop(path, rows, ingest, entry["record"], entry["rule"])
        if number < STOPS:
            check_stop(path, [*good, rows[entry["record"]]], ingest, len(good), entry["rule"])
    seen.update(rows=len(rows), kept=len(expected), broken=len(broken), uncompared=uncompared)


@pytest.mark.parametrize("kind", sorted(SUFFIXES))
def test_a_mutated_row_is_read_as_written_or_set_aside_once_or_not_compared_and_ends_a_run_that_stops(
    kind, seed, ingest_settings, tmp_path
):
    ingest, seen = ingest_settings(on_bad_record="quarantine", max_bad_share=1.0), Counter()

    def of_tables(rows):
        check(tmp_path / f"t{kind}", suited(kind, rows), ingest, seen)

    fuzz(of_tables, ROWS, EXAMPLES, seed, phases=[Phase.generate])
    kept, broken, uncompared = (200, 40, 25) if seed is None else (100, 10, 0)
    assert seen["kept"] > kept
    assert seen["broken"] > broken
    assert kind == ".txt" or seen["uncompared"] > uncompared
