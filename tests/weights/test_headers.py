"""What a file of a model is in place of what its name says, from its header alone."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from wrong_files import PAGE, POINTER

from srpo_core.errors import DataError
from srpo_core.weights.gguf_header import read_gguf_header
from srpo_core.weights.headers import fault_of, read_json_object
from srpo_core.weights.safetensors_header import read_safetensors_header

KINDS = ["m.safetensors", "m.pt", "m.bin", "m.gguf", "config.json", "merges.txt"]


def safetensors_bytes(header, data=bytes(32)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start, stop, shape=None, dtype="F32"):
    return {
        "dtype": dtype,
        "shape": [(stop - start) // 4] if shape is None else shape,
        "data_offsets": [start, stop],
    }


def test_intact_files_have_no_fault(intact):
    assert {path.name for path in intact.iterdir()} == set(KINDS)
    assert [fault_of(intact / name) for name in KINDS] == [None] * len(KINDS)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (POINTER, "{path}: this is a Git LFS pointer: run git lfs pull in its repository"),
        (b"", "{path}: this file is empty: fetch it again"),
        (
            PAGE,
            "{path}: this is an HTML page: a web server sent it (Access to this model is restricted) in place of the file; "
            "download the file itself, and for a gated model with a token (HF_TOKEN)",
        ),
        (
            b'\n<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
            "{path}: this is an XML answer: a web server sent it (AccessDenied) in place of the file; download the file "
            "itself, and for a gated model with a token (HF_TOKEN)",
        ),
    ],
)
def test_what_stands_in_place_of_a_file_is_named_with_the_next_step(intact, name, content, expected):
    (intact / name).write_bytes(content)
    assert fault_of(intact / name) == expected.format(path=intact / name)


@pytest.mark.parametrize("name", ["m.safetensors", "m.gguf"])
def test_a_file_cut_in_its_data_names_both_sizes(intact, name):
    whole = (intact / name).read_bytes()
    last = len(whole) if name == "m.safetensors" else read_gguf_header(intact / name).tensors["a"]
    end = last if isinstance(last, int) else last.start + last.num_bytes
    (intact / name).write_bytes(whole[: end - 5])
    assert fault_of(intact / name) == f"{intact / name}: cut at {end - 5} of {end} bytes: fetch it again"


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.gguf", "config.json"])
def test_a_file_cut_anywhere_has_a_fault_of_one_line(intact, name):
    path = intact / name
    whole = path.read_bytes()
    # the last byte of a GGUF file may be padding
    end = len(whole) - (32 if name == "m.gguf" else 1)
    for length in {*range(0, end, 11), *range(min(end, 30)), end - 1}:
        path.write_bytes(whole[:length])
        fault = fault_of(path)
        assert fault is not None
        assert fault.startswith(str(path))
        assert "\n" not in fault


def test_a_zip_that_is_cut_or_of_another_program_is_no_file_of_pytorch(intact):
    whole = (intact / "m.pt").read_bytes()
    (intact / "m.pt").write_bytes(whole[:-30])
    assert f"cut at {len(whole) - 30} bytes, it lacks the directory at the end of its zip" in fault_of(
        intact / "m.pt"
    )
    import zipfile

    with zipfile.ZipFile(intact / "m.pt", "w") as archive:
        archive.writestr("readme", "text")
    assert "is a zip, but no file of PyTorch (it has no data.pkl)" in fault_of(intact / "m.pt")


@pytest.mark.parametrize(
    ("name", "other", "kind"),
    [
        ("m.safetensors", "m.pt", "this is a pickle of PyTorch and not a safetensors file"),
        ("m.safetensors", "m.bin", "this is a pickle of PyTorch and not a safetensors file"),
        ("m.safetensors", "m.gguf", "this is a GGUF file and not a safetensors file"),
        ("m.safetensors", "config.json", "this is a JSON text and not a safetensors file"),
        ("m.gguf", "m.safetensors", "this is a safetensors file and not a GGUF file"),
        ("m.pt", "m.safetensors", "this is a safetensors file and not a pickle of PyTorch"),
    ],
)
def test_a_file_under_the_ending_of_another_kind_is_named(intact, name, other, kind):
    (intact / name).write_bytes((intact / other).read_bytes())
    assert kind in fault_of(intact / name)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", "UTF-8"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32-le", "UTF-32"),
        ("utf-32-be", "UTF-32"),
    ],
)
def test_json_with_a_byte_order_mark_is_named_with_the_command_that_mends_it(
    intact, monkeypatch, encoding, mark
):
    (intact / "config.json").write_bytes('\ufeff{"a": "Ä"}'.encode(encoding))
    fault = fault_of(intact / "config.json")
    assert f"this begins with a byte order mark ({mark})" in fault
    assert "save it as UTF-8 without BOM" in fault
    assert "codec" not in fault
    command = fault.partition("for example with ")[2]
    assert command.startswith("sed" if mark == "UTF-8" else f"iconv -f {mark} -t UTF-8 ")
    monkeypatch.chdir(intact)
    subprocess.run(command, shell=True, check=True)
    assert read_json_object(intact / "config.json") == {"a": "Ä"}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!-- login --><html><title>Log in</title>", "an HTML page: a web server sent it (Log in)"),
        (b"\n<!-- a -->\n<!-- b\n-->\r\n<!DOCTYPE html>", "an HTML page"),
        (b"<!-- " + b"long " * 5000 + b"--><html>", "an HTML page"),
        (b"<!---->" * 600, "an HTML page"),
        (b"<!-- proxy -->\n<Error><Code>AccessDenied</Code>", "an XML answer"),
        (b"<title>Log in</title>", "an HTML page"),
    ],
)
@pytest.mark.parametrize("name", ["merges.txt", "config.json"])
def test_a_page_may_begin_with_comments(intact, name, content, kind):
    (intact / name).write_bytes(content)
    assert f"{name}: this is {kind}" in fault_of(intact / name)


@pytest.mark.parametrize(
    "text",
    [b"{", b"[1", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'"text', b"\0\0\0{"],
)
def test_damaged_json_has_a_fault_of_one_short_line(intact, text):
    (intact / "config.json").write_bytes(text)
    fault = fault_of(intact / "config.json")
    assert "config.json is damaged (no JSON in UTF-8: " in fault
    assert "\n" not in fault
    assert len(fault) < 400


def test_a_json_array_is_no_object(intact):
    (intact / "config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"config\.json is damaged \(no JSON object\)"):
        read_json_object(intact / "config.json")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": entry(0, 16), "b": entry(8, 32)}, "tensor b overlaps the tensor before it"),
        ({"a": entry(0, 16), "b": entry(20, 32)}, "tensor b leaves a gap before it"),
        ({"a": entry(4, 32)}, "tensor a leaves a gap before it"),
        ({"a": entry(0, 16)}, "16 bytes follow its last tensor"),
        ({"a": entry(-16, 16, [8])}, "tensor a has the offsets [-16, 16]"),
        ({"a": entry(32, 0, [0])}, "tensor a has the offsets [32, 0]"),
        ({"a": entry(0, 32, [9])}, "tensor a of type F32 and shape [9] does not fill 32 bytes"),
        ({"a": entry(0, 32, [-8])}, "tensor a has the shape [-8]"),
        ({"a": entry(0, 32, [True, 8])}, "tensor a has the shape [True, 8]"),
        ({"a": entry(0, 32, [8.0])}, "tensor a has the shape [8.0]"),
        ({"a": entry(0, 32, dtype="F33")}, "tensor a has the unknown type F33"),
        ({"a": entry(0, 32, dtype=None)}, "tensor a has the unknown type None"),
        ({"a": {"dtype": "F32"}}, "the entry of tensor a does not have the keys"),
        ({"a": 1}, "the entry of tensor a does not have the keys"),
        ({"a": entry(0, 32), "__metadata__": {"n": 1}}, "__metadata__ is no object of strings"),
        ({"a": entry(0, 32), "__metadata__": None}, "__metadata__ is no object of strings"),
        ({}, "it has no tensor"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "dtype is in its header twice"),
        (
            b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 32)).encode(),) * 2),
            "a is in its header twice",
        ),
        (b'{"a": ' + b"[" * 50_000, "its header is no JSON"),
        (b'{"a": "\xff"}', "its header is no JSON, 'utf-8' codec"),
        (b'{"a"', "its header is no JSON"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_by_name(tmp_path, header, problem):
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes(header))
    with pytest.raises(DataError) as caught:
        read_safetensors_header(path)
    assert str(caught.value).startswith(f"{path} is no intact safetensors file ({problem}")
    assert "\n" not in str(caught.value)


def test_a_header_is_read_as_the_library_reads_it(intact):
    tensors, metadata = read_safetensors_header(intact / "m.safetensors")
    assert metadata == {}
    data = (intact / "m.safetensors").read_bytes()
    with safe_open(intact / "m.safetensors", framework="numpy") as file:
        assert set(file.keys()) == set(tensors)
        for name, one in tensors.items():
            array = file.get_tensor(name)
            assert (one.dtype, one.shape) == ("F32", array.shape)
            assert data[one.start : one.start + one.num_bytes] == array.tobytes()


def test_a_gguf_header_is_read_as_the_library_reads_it(intact):
    from gguf import GGUFReader

    header = read_gguf_header(intact / "m.gguf")
    (tensor,) = GGUFReader(intact / "m.gguf").tensors
    assert header.values["general.architecture"] == "flux"
    assert header.tensors["a"].start == tensor.data_offset
    assert header.tensors["a"].num_bytes == tensor.n_bytes
    assert header.tensors["a"].shape == (2, 32)
    assert header.tensors["a"].dtype == tensor.tensor_type.name


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (4, struct.pack("<I", 99), "version 99; known are 2 and 3"),
        (4, struct.pack(">I", 3), "version 50331648; known are 2 and 3, little-endian"),
        (8, struct.pack("<Q", 2**62), "4611686018427387904 tensors and 2 values"),
        (8, struct.pack("<Q", 0), "it has no tensor"),
        (16, struct.pack("<Q", 2**62), "1 tensors and 4611686018427387904 values"),
        (24, struct.pack("<Q", 2**63), "cut at"),
    ],
)
def test_a_gguf_header_that_breaks_a_rule_is_refused(intact, place, value, problem):
    data = bytearray((intact / "m.gguf").read_bytes())
    data[place : place + len(value)] = value
    (intact / "m.gguf").write_bytes(data)
    assert problem in fault_of(intact / "m.gguf")


def write_tensors(path, count=2):
    """Write tensors t0, t1, ... of 8 float32 each."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "flux")
    for number in range(count):
        writer.add_tensor(f"t{number}", np.arange(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def info(name, offset):
    """Describe a tensor of 8 float32 as a GGUF header does."""
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 8, 0, offset)


@pytest.mark.parametrize(
    ("offsets", "extra", "problem"),
    [
        (
            (0, 65536),
            65536,
            "tensor t1 does not follow at once what is before it: its offset is 65536, and 32 is",
        ),
        (
            (4096, 4128),
            4096,
            "tensor t0 does not follow at once what is before it: its offset is 4096, and 0 is",
        ),
        ((0, 64), 32, "tensor t1 does not follow at once what is before it"),
        ((0, 0), 0, "tensor t1 overlaps the tensor before it"),
        ((0, 40), 8, "tensor t1 does not follow at once what is before it"),
        ((0, 16), 0, "tensor t1 overlaps the tensor before it"),
    ],
)
def test_tensors_of_a_gguf_file_follow_each_other_without_a_gap(tmp_path, offsets, extra, problem):
    path = write_tensors(tmp_path / "m.gguf")
    data = path.read_bytes()
    assert fault_of(path) is None
    for name, old, new in zip((b"t0", b"t1"), (0, 32), offsets, strict=True):
        assert data.count(info(name, old)) == 1
        data = data.replace(info(name, old), info(name, new))
    path.write_bytes(data + bytes(extra))
    assert problem in fault_of(path)


def pair(key, kind, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("pairs", "problem"),
    [
        ([pair(b"n", 4, b"abcd")] * 2, "the key n is in its header twice"),
        ([pair(b"n", 4, b"abcd"), pair(b"n", 7, b"1")], "the key n is in its header twice"),
        ([pair(b"n", 77, b"")], "n has the unknown type 77"),
        ([pair(b"n", 9, struct.pack("<IQ", 77, 0))], "n is an array of the unknown type 77"),
        ([pair(b"n", 9, struct.pack("<IQ", 9, 0))], "n is an array of the unknown type 9"),
        ([pair(b"n", 9, struct.pack("<IQ", 77, 9) + bytes(9))], "n is an array of the unknown type 77"),
        ([pair(b"n", 9, struct.pack("<IQ", 4, 0))], None),
        ([pair(b"n", 9, struct.pack("<IQ", 8, 0))], None),
    ],
)
def test_keys_of_a_gguf_file_are_unique_and_of_known_types(tmp_path, pairs, problem):
    path = tmp_path / "m.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + info(b"t0", 0)
    path.write_bytes(head + bytes(-len(head) % 32 + 32))
    fault = fault_of(path)
    assert fault is None if problem is None else problem in fault


def test_headers_are_checked_without_torch(intact):
    """`srpo doctor` opens every header, and `srpo quantize` needs little memory."""
    script = (
        "import sys; from pathlib import Path; from srpo_core.weights.headers import fault_of; "
        f"assert not any(fault_of(path) for path in Path({str(intact)!r}).iterdir()); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
