"""Rows that break a rule are set aside one by one, whatever the kind of table."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srpo_core.data.hpd import read_benchmark
from srpo_core.data.rules import Findings
from srpo_core.data.sources.layouts import CAPTIONS, PAIRS, PROMPTS, read_table
from srpo_core.data.sources.rows import open_table
from srpo_core.data.sources.table_images import open_table_images
from srpo_core.errors import DataError

VOTES = {
    "prompt": "q",
    "image_a": "left",
    "image_b": "right",
    "preferred": "winner",
    "id_a": "id_left",
    "id_b": "id_right",
}


@pytest.fixture
def read(tmp_path, ingest_settings):
    """Return a function that reads tables one after the other: choices and styles, and what was set aside."""
    quarantine = io.StringIO()
    findings = Findings(ingest_settings(on_bad_record="quarantine", max_bad_share=1.0), quarantine)

    def those(names, layouts, columns=None):
        identities: dict[str, str] = {}
        found = [
            one
            for name in names.split()
            for one in read_table(
                layouts, open_table(tmp_path / name, name), columns or {}, findings, identities
            )
        ]
        return found, [json.loads(line) for line in quarantine.getvalue().splitlines()]

    those.findings = findings
    return those


def write_tar(path, members):
    """Write (name, content) in order; a content that is a text is the target of a hard link."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def sample(key, **changes):
    cells = {"txt": b"a cat", "0.jpg": b"one", "1.jpg": b"two", "cls": b"0"}
    cells |= {name.replace("_", "."): content for name, content in changes.items()}
    return [(f"{key}.{column}", content) for column, content in cells.items() if content is not None]


def prompts_of(found):
    return [choice.prompt for choice, _ in found]


def by_record(set_aside):
    return {entry["record"]: (entry["rule"], entry["detail"]) for entry in set_aside}


@pytest.mark.parametrize("bad", [0, 1])
def test_a_sample_of_a_webdataset_without_an_image_is_set_aside(tmp_path, read, bad):
    changes = [{}, {}]
    changes[bad] = {"1_jpg": None}
    write_tar(tmp_path / "a.tar", [*sample("a", **changes[0]), *sample("b", **changes[1])])
    found, set_aside = read("a.tar", PAIRS)
    assert [choice.record for choice, _ in found] == [1 - bad]
    assert by_record(set_aside) == {bad: ("broken_record", "1.jpg: the row has no image there")}


def test_images_of_other_kinds_and_hard_links_are_images_of_their_rows(tmp_path, read):
    members = [*sample("a"), *sample("b", **{"1_jpg": "a.1.jpg", "cls": "a.cls"})]
    write_tar(tmp_path / "a.tar", [*members, *sample("c", **{"0_jpg": None, "0_png": b"three"})])
    found, set_aside = read("a.tar", PAIRS)
    assert set_aside == []
    assert [choice.images for choice, _ in found][1:] == [
        ("a.tar/b.0.jpg", "a.tar/b.1.jpg"),
        ("a.tar/c.0.png", "a.tar/c.1.jpg"),
    ]
    with open_table_images(tmp_path) as images:
        assert [images.read(name) for choice, _ in found for name in choice.images] == [
            *(b"one", b"two", b"one", b"two", b"three", b"two")
        ]
    write_tar(tmp_path / "b.tar", [("a.jpg", b"1"), ("a.txt", b"x"), ("b.png", b"2"), ("b.txt", b"y")])
    found, _ = read("b.tar", CAPTIONS)
    assert [choice.images for choice, _ in found] == [("b.tar/a.jpg",), ("b.tar/b.png",)]


def test_a_bad_member_of_a_webdataset_sets_its_sample_aside_with_its_text(tmp_path, read):
    members = [("1.json", b'{"caption": "one"}'), ("2.json", b'{"caption": "x", "caption": "y"}')]
    members += [("3.caption", b"caf\xe9"), ("4.json", b'{"caption"'), ("5.caption", "no such member")]
    write_tar(tmp_path / "a.tar", [*members, ("6.caption", b"six"), ("7.caption", b"a"), ("7.caption", b"b")])
    found, set_aside = read("a.tar", PROMPTS)
    assert prompts_of(found) == ["one", "six"]
    assert by_record(set_aside) == {
        1: ("doubled_key", "2.json: key 'caption' is there twice"),
        2: ("broken_record", "3.caption: is not UTF-8 at byte 3"),
        3: ("broken_record", "4.json: broken JSON at line 1, column 11: Expecting ':' delimiter"),
        4: ("broken_record", "5.caption: is a link to nothing"),
        6: ("doubled_key", "7.caption: the row has 'caption' twice"),
    }
    assert [entry["text"] for entry in set_aside][:2] == [members[1][1].decode(), "caf\\xe9"]


def test_a_broken_line_of_json_is_set_aside_with_its_text_and_a_cut_file_is_refused(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"prompt": "one"}\n{"prompt": "two"\n"caf\xe9"\n{"prompt": 1, "prompt": 2}\n{"prompt": "five"}\n'
    )
    found, set_aside = read("a.jsonl", PROMPTS)
    assert prompts_of(found) == ["one", "five"]
    assert {number: rule for number, (rule, _) in by_record(set_aside).items()} == {
        1: "broken_record",
        2: "broken_record",
        3: "doubled_key",
    }
    assert set_aside[2]["text"].strip() == '{"prompt": 1, "prompt": 2}'
    path.write_bytes(b'{"prompt": "one"}\n{"prompt": "two')
    with pytest.raises(DataError, match=r"a\.jsonl: record 1: broken JSON .* where the file ends"):
        read("a.jsonl", PROMPTS)


@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_a_line_that_is_not_utf_8_is_set_aside(tmp_path, read, kind):
    header = b"prompt,x\n" if kind == "csv" else b""
    rest = b",1\n" if kind == "csv" else b"\n"
    (tmp_path / f"a.{kind}").write_bytes(header + rest.join([b"one", b"caf\xe9", b"three", b""]))
    found, set_aside = read(f"a.{kind}", PROMPTS, {"prompt": "prompt" if kind == "csv" else "text"})
    assert prompts_of(found) == ["one", "three"]
    ((record, (rule, detail)),) = by_record(set_aside).items()
    assert (record, rule) == (1, "broken_record")
    assert detail.startswith("not UTF-8 at byte 3")


def test_a_line_of_control_characters_is_a_record_and_an_empty_line_is_none(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"one\n \t\n\x1c\x1d\ntwo\n")
    found, set_aside = read("a.txt", PROMPTS)
    assert prompts_of(found) == ["one", "two"]
    assert by_record(set_aside) == {1: ("empty_text", "text: is empty")}


def test_bytes_in_a_column_of_texts_are_texts_in_utf_8_or_set_aside(tmp_path, read):
    pq.write_table(pa.table({"prompt": [b"a cat", b"caf\xe9", "café".encode()]}), tmp_path / "a.parquet")
    texts = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xe9c")
    )
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "b.parquet")
    found, set_aside = read("a.parquet b.parquet", PROMPTS)
    assert prompts_of(found) == ["a cat", "café", "a", "c"]
    assert [(entry["record"], entry["rule"]) for entry in set_aside] == [(1, "broken_record")] * 2


def votes(path, rows):
    columns = [*VOTES.values(), "kind"]
    base = {"q": "a cat", "left": "x.jpg", "right": "y.jpg", "id_left": "", "id_right": "", "kind": None}
    path.write_text(
        "\n".join(json.dumps({column: (base | row).get(column) for column in columns}) for row in rows) + "\n"
    )


@pytest.mark.parametrize("value", ["", " ", None, "None", "nan", float("nan"), "2", [], {}, "c"])
@pytest.mark.parametrize("identity", ["", None, float("nan")])
def test_an_empty_vote_is_no_preference(tmp_path, read, value, identity):
    votes(tmp_path / "a.jsonl", [{"winner": value, "id_left": "u", "id_right": identity}])
    found, set_aside = read("a.jsonl", PAIRS, VOTES)
    assert found == []
    assert by_record(set_aside)[0][0] == "broken_record"


def test_a_vote_names_an_image_by_its_id_also_if_the_id_is_a_number(tmp_path, read):
    rows = [{"winner": " u2 ", "id_left": "u1", "id_right": "u2"}, {"winner": 7, "id_left": 7, "id_right": 8}]
    votes(tmp_path / "a.jsonl", rows)
    found, set_aside = read("a.jsonl", PAIRS, VOTES)
    assert ([choice.ranks for choice, _ in found], set_aside) == ([(2, 1), (1, 2)], [])


@pytest.mark.parametrize(
    ("style", "expected"), [(None, ""), ("", ""), (" x ", "x"), (3, "3"), ("\ud800", None), ([1], None)]
)
def test_a_style_is_a_text_and_none_if_the_cell_is_empty(tmp_path, read, style, expected):
    votes(tmp_path / "a.jsonl", [{"winner": "a", "kind": style}])
    found, set_aside = read("a.jsonl", PAIRS, VOTES | {"style": "kind"})
    assert [style for _, style in found] == ([] if expected is None else [expected])
    assert len(set_aside) == (expected is None)


def test_an_image_with_one_id_in_several_files_has_the_name_that_it_had_first(tmp_path, read):
    ids = {"winner": "a", "id_left": "u1", "id_right": 0}
    for number in range(2):
        names = {"left": f"x{number}.jpg", "right": f"y{number}.jpg"}
        votes(tmp_path / f"{number}.jsonl", [ids | names])
    found, _ = read("0.jsonl 1.jsonl", PAIRS, VOTES)
    assert [choice.images for choice, _ in found] == [("x0.jpg", "y0.jpg")] * 2


def test_rows_that_nobody_compared_are_counted_by_file_and_break_no_rule(tmp_path, read):
    votes(
        tmp_path / "a.jsonl", [{"winner": "a", "kind": True}, {"winner": None, "left": None, "kind": False}]
    )
    found, set_aside = read("a.jsonl", PAIRS, VOTES | {"has_label": "kind"})
    assert (len(found), set_aside) == (1, [])
    file = str(tmp_path / "a.jsonl")
    assert read.findings.summary()["uncompared"] == {file: 1}
    assert read.findings.summary()["read"] == {file: 2}


def test_names_that_are_not_utf_8_are_refused_or_set_aside(tmp_path, read, ingest_settings):
    members = [("a.txt", b"a"), ("a.jpg", b"1"), ("caf\udce9.txt", b"b"), ("caf\udce9.jpg", b"2")]
    write_tar(tmp_path / "a.tar", members)
    found, set_aside = read("a.tar", CAPTIONS)
    assert prompts_of(found) == ["a"]
    assert by_record(set_aside)[1][0] == "half_surrogate"
    (tmp_path / "caf\udce9.txt").write_text("a cat\n")
    with pytest.raises(DataError, match=r"caf\\udce9\.txt: the name of the file is not UTF-8: rename it"):
        read("caf\udce9.txt", PROMPTS)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/caf\udce9.json").write_text('["a cat"]')
    with pytest.raises(DataError, match=r"caf\\udce9\.json: the name of the list is not UTF-8: rename it"):
        list(read_benchmark(tmp_path, Findings(ingest_settings(), None)))
