"""Sources with a mutated header, and all of `srpo quantize` on them."""

import json
import shutil
import struct
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from diffusers import FluxTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from srpo_core.errors import SrpoError
from srpo_core.quantizers import QUANTIZERS, num_weights, open_flux
from srpo_core.quantizers.standalone import quantize_checkpoint
from srpo_core.weights.files import WEIGHTS
from srpo_core.weights.gguf_header import read_gguf_header
from srpo_core.weights.headers import fault_of
from srpo_core.weights.safetensors_header import BITS

FORMATS = ["bf16", "fp8_e4m3fn_scaled"]
INTEGERS = st.integers(-2, 6000) | st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30])
VALUES = (
    INTEGERS
    | st.none()
    | st.booleans()
    | st.text(max_size=3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(INTEGERS, max_size=3)
    | st.dictionaries(st.text(max_size=3), INTEGERS, max_size=2)
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a FLUX of width 16 with 1 + 1 blocks, with an intact copy of its weights."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(2, 2, 4),
    ).save_pretrained(directory)
    shutil.copy(directory / WEIGHTS, directory / "intact")
    return directory


def mutate_entry(draw, header):
    """Change one value of one tensor's entry, or the entry."""
    name = draw(st.sampled_from(sorted(header)))
    entry = header[name]
    if name == "__metadata__" or draw(st.integers(0, 9)) == 0:
        header[name] = draw(VALUES)
        return
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
    if field == "dtype":
        entry["dtype"] = draw(st.sampled_from(sorted(BITS)) | VALUES)
    elif field == "more":
        draw(st.sampled_from([entry.clear, lambda: entry.update(more=1), lambda: entry.pop("shape")]))()
    else:
        place = draw(st.integers(0, len(entry[field]) - 1))
        change = draw(st.sampled_from(["set", "add", "reverse", "replace"]))
        if change == "set":
            entry[field][place] = draw(VALUES)
        elif change == "add":
            entry[field][place] += draw(st.integers(-64, 64))
        elif change == "reverse":
            entry[field].reverse()
        else:
            entry[field] = draw(VALUES)


def mutate_names(draw, header):
    """Swap, drop, rename or copy tensors."""
    one, two = draw(st.tuples(*[st.sampled_from(sorted(header))] * 2))
    change = draw(st.sampled_from(["swap", "swap offsets", "drop", "rename", "copy"]))
    if change == "swap":
        header[one], header[two] = header[two], header[one]
    elif change == "swap offsets" and "__metadata__" not in (one, two):
        first, second = header[one], header[two]
        first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    elif change == "drop":
        header.pop(one)
    elif change == "rename":
        header[draw(st.text(max_size=5) | st.just(f"{one}_scale"))] = header.pop(one)
    else:
        header[f"{one}2"] = header[one]


def mutated(draw, header, data):
    """Return the bytes of a file after one mutation."""
    kind = draw(st.sampled_from(["entry", "entry", "names", "text", "length", "size"]))
    if kind == "entry":
        mutate_entry(draw, header)
    elif kind == "names":
        mutate_names(draw, header)
    text = bytearray(json.dumps(header).encode())
    length = len(text)
    if kind == "text":
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, length - 1))
            text[place] = draw(st.sampled_from(b'0123456789[]{}",:\xff -'))
    if kind == "length":
        length = draw(st.integers(length - 9, length + 9) | st.integers(0, 2**64 - 1))
    if kind == "size":
        by = draw(st.integers(-300, 300))
        data = data[:by] if by < 0 else data + bytes(by)
    return struct.pack("<Q", length) + bytes(text) + data


def quantized_or_refused(whole, out):
    """Quantize the mutated source and return whether it passed; then its copy has the same weights, as another reader finds them."""
    path = whole / WEIGHTS
    shutil.rmtree(out, ignore_errors=True)
    try:
        lines = list(
            quantize_checkpoint(whole, FORMATS, out, stem="m", bar=lambda *_: nullcontext(lambda _: None))
        )
    except SrpoError as error:
        assert "\n" not in str(error)
        assert str(whole) in str(error)
        return False
    assert fault_of(path) is None
    assert len(lines) == 3
    for written in out.rglob("*.safetensors"):
        with safe_open(written, framework="pt") as file:
            assert all(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    source, copy = load_file(path), load_file(out / "bf16" / WEIGHTS)
    assert source.keys() == copy.keys()
    assert all(torch.equal(source[name].bfloat16(), copy[name]) for name in source)
    FluxTransformer2DModel.from_pretrained(out / "bf16")
    return True


def test_a_mutated_header_ends_in_one_line_or_in_files_that_open(whole, tmp_path):
    seen: Counter[bool] = Counter()
    intact = (whole / "intact").read_bytes()
    begin = 8 + struct.unpack("<Q", intact[:8])[0]

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    @given(drawn=st.data())
    def of_files(drawn):
        data = mutated(drawn.draw, json.loads(intact[8:begin]), intact[begin:])
        (whole / WEIGHTS).write_bytes(data)
        seen[quantized_or_refused(whole, tmp_path / "out")] += 1

    of_files()
    assert seen[True] >= 25
    assert seen[False] >= 500


@pytest.fixture(scope="module")
def gguf(whole, tmp_path_factory):
    """A GGUF file of the model, and its bytes."""
    out = tmp_path_factory.mktemp("gguf")
    shutil.copy(whole / "intact", whole / WEIGHTS)
    list(quantize_checkpoint(whole, ["gguf_bf16"], out, stem="m", bar=lambda *_: nullcontext(lambda _: None)))
    (path,) = out.rglob("*.gguf")
    (out / "intact").write_bytes(path.read_bytes())
    return out / "m.gguf", out / "intact"


def read_or_refused(path, data):
    """Open the mutated file and return whether it passed; then it has all weights of the model."""
    path.write_bytes(data)
    try:
        checkpoint = open_flux(path)
        weights = [
            chunk.float32 for joint in checkpoint.joints for chunk in checkpoint.chunks(joint.bfl, bfl=True)
        ]
    except SrpoError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
        return False
    assert sum(chunk.size for chunk in weights) == num_weights(checkpoint, {"one": QUANTIZERS["q8_0"]})
    return True


def test_a_gguf_file_with_mutated_bytes_ends_in_one_line_or_is_read(gguf):
    path, intact = gguf
    seen: Counter[bool] = Counter()
    header = min(one.start for one in read_gguf_header(intact).tensors.values())

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(drawn=st.data())
    def of_files(drawn):
        data = bytearray(intact.read_bytes())
        for _ in range(drawn.draw(st.integers(1, 3))):
            place = drawn.draw(st.integers(0, header - 8))
            width = drawn.draw(st.sampled_from([1, 4, 8]))
            value = drawn.draw(st.integers(0, 255) | st.integers(0, 256**width - 1)) % 256**width
            data[place : place + width] = value.to_bytes(width, "little")
        size = drawn.draw(st.sampled_from([len(data), len(data), header, header // 2]))
        seen[read_or_refused(path, data[:size])] += 1

    of_files()
    assert seen[True] >= 3
    assert seen[False] >= 150
