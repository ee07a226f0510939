"""A file that is cut or altered ends in one line that names it."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from coloured_images import PREFERRED, REJECTED, encode

from srpo_core.errors import DataError


def write_parquet(path, count=200, what="thing"):
    rows = {
        "prompt": [f"a {what} {number}" for number in range(count)],
        "chosen": [encode(2 * number, PREFERRED) for number in range(count)],
        "rejected": [encode(2 * number + 1, REJECTED) for number in range(count)],
    }
    pq.write_table(pa.table(rows), path, row_group_size=50)


def overwrite(path, start, length):
    content = bytearray(path.read_bytes())
    content[start : start + length] = b"\xff" * length
    path.write_bytes(content)


def refusal(ingest, source):
    with pytest.raises(DataError) as caught:
        ingest(source, "pairs", versioned=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_parquet_file_that_is_cut_or_altered_is_named(tmp_path, ingest):
    path = tmp_path / "train.parquet"
    write_parquet(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert refusal(ingest, path).startswith(f"{path}: cannot be read: ")
    column = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(2).column(0)
    path.write_bytes(whole)
    overwrite(path, column.data_page_offset, 40)
    assert refusal(ingest, path).startswith(f"{path}: cannot be read: ")
    path.write_bytes(whole)
    image = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(2).column(1)
    overwrite(path, image.dictionary_page_offset or image.data_page_offset, 40)
    assert refusal(ingest, path).startswith(f"{path}: cannot be read: ")


def test_a_webdataset_that_is_cut_is_named(tmp_path, ingest):
    path = tmp_path / "train.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(20):
            for column, content in (
                ("txt", f"a thing {number}".encode()),
                ("chosen.jpg", encode(2 * number, PREFERRED)),
                ("rejected.jpg", encode(2 * number + 1, REJECTED)),
            ):
                member = tarfile.TarInfo(f"{number}.{column}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    whole = path.read_bytes()
    header = whole.index(b"17.txt")
    for content in (
        whole[:header],
        whole + whole,
        whole[:20_000],
        whole[: header + 300],
        whole[: header + 148] + b"9" + whole[header + 149 :],
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train.tar: .*cannot be read|not a readable tar"):
            ingest(
                path,
                "pairs",
                versioned=False,
                columns={"prompt": "txt", "chosen": "chosen.jpg", "rejected": "rejected.jpg"},
            )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(tmp_path, ingest, suffix):
    path = tmp_path / f"train.{suffix}"
    if suffix == "csv":
        path.write_text("prompt,chosen,chosen\na,b,c\n")
    else:
        table = pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "chosen", "chosen"])
        pq.write_table(table, path)
    assert refusal(ingest, path) == f"{path}: has the column 'chosen' twice: rename one of them"


def test_files_of_other_kinds_beside_parquet_files_are_counted(tmp_path, ingest, caplog):
    (tmp_path / "own").mkdir()
    write_parquet(tmp_path / "own/train.parquet", 30)
    write_parquet(tmp_path / "own/test.parquet", 30, "test")
    (tmp_path / "own/train.csv").write_text("prompt,chosen,rejected\n")
    ingest("own", "pairs", versioned=False)
    assert "own: 1 files beside its parquet files are not read, first train.csv" in caplog.text
