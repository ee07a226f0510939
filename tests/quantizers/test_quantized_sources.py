"""Sources in float8 and GGUF: our own files back again, and files written here by the published conventions."""

import json
import tracemalloc
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srpo_core.errors import DataError
from srpo_core.quantizers import QUANTIZERS, convert, open_flux, read_directory, read_file
from srpo_core.quantizers.conversion import is_block_weight
from srpo_core.quantizers.key_map import bfl_names
from srpo_core.quantizers.standalone import quantize_checkpoint
from srpo_core.weights.files import WEIGHTS

WARNING = "source was already quantized ({}): quality is at most that of the source"
# ‖decoded − weights‖ / ‖weights‖ of normally distributed weights
BOUNDS = {
    "fp8_e4m3fn": ("fp8 float8_e4m3fn", 0.030),
    "fp8_e4m3fn_scaled": ("fp8 float8_e4m3fn, scaled", 0.030),
    "q8_0": ("GGUF Q8_0", 0.008),
    "q6_k": ("GGUF Q6_K", 0.025),
    "q5_0": ("GGUF Q5_0", 0.055),
    "q4_k_m": ("GGUF Q4_K, Q5_K", 0.090),
}


def quantize(source, names, out):
    return list(quantize_checkpoint(source, names, out, stem="m", bar=lambda *_: nullcontext(lambda _: None)))


def relative_error(found, weights):
    difference = torch.cat([(found[name] - weights[name]).flatten() for name in weights])
    return float(difference.norm() / torch.cat([value.flatten() for value in weights.values()]).norm())


@pytest.fixture(scope="module")
def ours(checkpoint, tmp_path_factory):
    """The files that we write of the checkpoint, by format."""
    target = tmp_path_factory.mktemp("ours")
    formats = {name: QUANTIZERS[name] for name in (*BOUNDS, "gguf_f16", "gguf_bf16")}
    written = convert(open_flux(checkpoint), formats, target, stem="m")
    return {name: files[0].path for name, files in written.items()}


@pytest.fixture(scope="module")
def original(checkpoint):
    return read_directory(checkpoint)


@pytest.fixture(scope="module")
def in_bfl(checkpoint):
    """The checkpoint's weights by BFL name."""
    state = load_file(checkpoint / WEIGHTS)
    rows = bfl_names({name: tuple(value.shape) for name, value in state.items()})
    return {
        name: torch.cat([state[piece.tensor][piece.start : piece.stop] for piece in pieces])
        for name, pieces in rows.items()
    }


@pytest.mark.parametrize("name", BOUNDS)
def test_our_own_quantized_files_are_read_back_within_the_bound_of_their_format(
    ours, original, tmp_path, name
):
    kind, bound = BOUNDS[name]
    assert open_flux(ours[name]).quantized == kind
    lines = quantize(ours[name], ["bf16"], tmp_path)
    assert lines[0] == f"warning: {WARNING.format(kind)}"
    assert len(lines) == 3
    back = read_directory(tmp_path / "bf16")
    decoded = read_file(ours[name])
    assert back.keys() == decoded.keys() == original.keys()
    for key, value in decoded.items():
        assert torch.equal(back[key], value.bfloat16().float()), key
    assert 1e-3 < relative_error(back, original) < bound


def test_a_file_in_float8_is_written_in_float8_again_without_loss(ours, tmp_path):
    quantize(ours["fp8_e4m3fn"], ["fp8_e4m3fn"], tmp_path)
    before, after = load_file(ours["fp8_e4m3fn"]), load_file(tmp_path / "fp8_e4m3fn/m-fp8_e4m3fn.safetensors")
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)


def test_the_warning_is_in_the_record_and_in_every_file(ours, tmp_path):
    formats = ["bf16", "q8_0", "fp8_e4m3fn_scaled"]
    warning = WARNING.format("GGUF Q5_0")
    for _ in range(2):  # of complete formats, too
        assert quantize(ours["q5_0"], formats, tmp_path)[0] == f"warning: {warning}"
    for name in formats:
        assert json.loads((tmp_path / name / "quantize.json").read_text())["warning"] == warning
    for path in sorted(tmp_path.rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            assert file.metadata()["srpo_warning"] == warning
    field = GGUFReader(tmp_path / "q8_0/m-q8_0.gguf").get_field("srpo.warning")
    assert field.contents() == warning


@pytest.mark.parametrize("name", ["gguf_f16", "gguf_bf16"])
def test_whole_floats_in_gguf_need_no_warning(ours, original, tmp_path, name):
    assert open_flux(ours[name]).quantized is None
    (line,) = quantize(ours[name], ["q8_0"], tmp_path)
    assert line.startswith(str(tmp_path))
    assert "warning" not in json.loads((tmp_path / "q8_0/quantize.json").read_text())
    with_f32 = read_file(tmp_path / "q8_0/m-q8_0.gguf")
    assert 1e-3 < relative_error(with_f32, original) < 0.01


def float8(value, dtype, scale=None):
    limit = torch.finfo(dtype).max
    return (value if scale is None else value / scale).clamp(-limit, limit).to(dtype)


def block_scales(value, rows, columns):
    """Scales of blocks, and the value with the scale of each weight."""
    height, width = value.shape
    padded = torch.zeros(-(-height // rows) * rows, -(-width // columns) * columns)
    padded[:height, :width] = value
    blocks = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)
    scales = blocks.abs().amax((1, 3)).clamp_min(1e-12) / 448
    whole = scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)[:height, :width]
    return scales, whole


def old_comfyui(state, dtype):
    """`scaled_fp8`, `scale_weight`, `scale_input`, as ComfyUI to 0.3.64 reads them."""
    file = {"scaled_fp8": torch.empty(2, dtype=dtype)}
    expected = {}
    for name, value in state.items():
        file[name] = expected[name] = value.bfloat16()
        if is_block_weight(name, tuple(value.shape)):
            scale = value.abs().max() / torch.finfo(dtype).max
            layer = name.removesuffix(".weight")
            file[name] = float8(value, dtype, scale)
            file |= {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.tensor([3.0])}
            expected[name] = file[name].float() * scale
    return file, expected


def new_comfyui(state, _dtype):
    """`weight_scale` without dimensions, and `comfy_quant`, as ComfyUI since 0.3.65 reads them."""
    file, expected = {}, {}
    text = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for name, value in state.items():
        file[name] = expected[name] = value.bfloat16()
        if is_block_weight(name, tuple(value.shape)):
            scale = value.abs().max() / 448
            layer = name.removesuffix(".weight")
            file[name] = float8(value, torch.float8_e4m3fn, scale)
            file |= {
                f"{layer}.weight_scale": scale,
                f"{layer}.input_scale": torch.tensor(2.0),
                f"{layer}.comfy_quant": text.clone(),
            }
            expected[name] = file[name].float() * scale
    return file, expected


def by_blocks(end, rows, columns, shape=None):
    """Return a convention with a scale for each block of `rows` × `columns`; None: the whole side."""

    def write(state, _dtype):
        file, expected = {}, {}
        for name, value in state.items():
            file[name] = expected[name] = value.half()
            if is_block_weight(name, tuple(value.shape)):
                scales, whole = block_scales(value, rows or len(value), columns or value.shape[1])
                file[name] = float8(value, torch.float8_e4m3fn, whole)
                file[name.removesuffix(".weight") + end] = scales.reshape(shape) if shape else scales
                expected[name] = file[name].float() * whole
        return file, expected

    return write


def plain(state, dtype):
    """Every tensor cast, as a loader with `weight_dtype` does it."""
    file = {name: float8(value, dtype) for name, value in state.items()}
    return file, file


CONVENTIONS = {
    "plain e4m3": (plain, torch.float8_e4m3fn, "fp8 float8_e4m3fn"),
    "plain e5m2": (plain, torch.float8_e5m2, "fp8 float8_e5m2"),
    "old e4m3": (old_comfyui, torch.float8_e4m3fn, "fp8 float8_e4m3fn, scaled"),
    "old e5m2": (old_comfyui, torch.float8_e5m2, "fp8 float8_e5m2, scaled"),
    "new": (new_comfyui, None, "fp8 float8_e4m3fn, scaled"),
    "rows": (by_blocks(".weight_scale", 1, None, (-1,)), None, "fp8 float8_e4m3fn, scaled"),
    "rows in a column": (by_blocks(".weight_scale", 1, None), None, "fp8 float8_e4m3fn, scaled"),
    "columns": (by_blocks(".scale_weight", None, 1), None, "fp8 float8_e4m3fn, scaled"),
    "blocks of 128": (by_blocks(".weight_scale_inv", 128, 128), None, "fp8 float8_e4m3fn, scaled"),
    "groups of 32": (by_blocks(".weight_scale", 1, 32), None, "fp8 float8_e4m3fn, scaled"),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_float8_files_are_read_by_the_conventions_in_which_they_are_published(
    in_bfl, tmp_path, convention, prefix
):
    write, dtype, kind = CONVENTIONS[convention]
    file, expected = write(in_bfl, dtype)
    save_file({f"{prefix}{name}": value for name, value in file.items()}, tmp_path / "flux.safetensors")
    source = open_flux(tmp_path / "flux.safetensors")
    assert source.quantized == kind
    for name, value in expected.items():
        found = np.concatenate([chunk.float32 for chunk in source.chunks(name, bfl=True)])
        np.testing.assert_array_equal(found, value.float().flatten().numpy(), err_msg=name)


def test_scaled_float8_with_diffusers_names_is_joined_and_split_by_rows(checkpoint, in_bfl, tmp_path):
    """A single block's fused tensor takes rows of four tensors, each with its own scales."""
    state = load_file(checkpoint / WEIGHTS)
    file, expected = by_blocks(".weight_scale", 1, None)(state, None)
    assert any(name.endswith("proj_mlp.weight_scale") for name in file)
    save_file(file, tmp_path / "flux.safetensors")
    source = open_flux(tmp_path / "flux.safetensors")
    rows = bfl_names({name: tuple(value.shape) for name, value in state.items()})
    for name in in_bfl:
        joined = torch.cat([expected[piece.tensor][piece.start : piece.stop].float() for piece in rows[name]])
        found = np.concatenate([chunk.float32 for chunk in source.chunks(name, bfl=True)])
        np.testing.assert_array_equal(found, joined.flatten().numpy(), err_msg=name)


def write_gguf(path, state, kind, *, shaped=False):
    """Write a file as ComfyUI-GGUF's converter does: matrices of blocks in `kind`, the rest in float32."""
    writer = GGUFWriter(path, "flux")
    expected = {}
    for name, value in state.items():
        data = value.numpy()
        of = kind if is_block_weight(name, data.shape) else GGMLQuantizationType.F32
        packed = quants.quantize(data, of)
        expected[name] = quants.dequantize(packed, of).reshape(data.shape)
        if shaped and data.ndim == 2 and of == GGMLQuantizationType.F32:
            packed = packed.reshape(-1)
            writer.add_array(f"comfy.gguf.orig_shape.{name}", [int(length) for length in data.shape])
        writer.add_tensor(name, packed, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_1"])
def test_gguf_files_of_other_programs_are_read(in_bfl, tmp_path, kind):
    expected = write_gguf(tmp_path / "flux.gguf", in_bfl, GGMLQuantizationType[kind], shaped=kind == "Q8_0")
    source = open_flux(tmp_path / "flux.gguf")
    assert source.quantized == (f"GGUF {kind}" if kind.startswith("Q") else None)
    for name, value in expected.items():
        found = np.concatenate([chunk.float32 for chunk in source.chunks(name, bfl=True)])
        np.testing.assert_array_equal(found, value.reshape(-1), err_msg=name)
    assert source.config["num_attention_heads"] == 2


def spoiled(in_bfl, tmp_path, change, metadata=None):
    file, _ = new_comfyui(in_bfl, None)
    change(file)
    save_file(file, tmp_path / "flux.safetensors", metadata)
    return tmp_path / "flux.safetensors"


LAYER = "double_blocks.1.img_mlp.0"
SHAPE = (1024, 256)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{LAYER}.weight_scale": torch.ones(3)},
            f"the scale of {LAYER}.weight has the shape [3], which does not divide its shape [1024, 256]",
        ),
        (
            {f"{LAYER}.weight_scale": torch.ones(2, 3)},
            "has the shape [2, 3], which does not divide its shape",
        ),
        ({f"{LAYER}.weight_scale": torch.ones(0)}, "has the shape [0], which does not divide its shape"),
        ({f"{LAYER}.weight_scale": torch.tensor(float("nan"))}, f"the scale of {LAYER}.weight holds a NaN"),
        (
            {f"{LAYER}.weight_scale": torch.ones(1024, 16).to(torch.float8_e4m3fn)},
            f"the scale of {LAYER}.weight has the type F8_E4M3 and the shape [1024, 16], which is not read",
        ),
        (
            {f"{LAYER}.weight_scale": torch.tensor(0.0)},
            f"the scale of {LAYER}.weight holds 0, and a scale is above 0",
        ),
        (
            {f"{LAYER}.weight_scale": torch.tensor([-0.5] + [1.0] * 1023)},
            f"the scale of {LAYER}.weight holds -0.5, and a scale is above 0",
        ),
        (
            {f"{LAYER}.weight_scale": torch.tensor(float("inf"))},
            f"the scale of {LAYER}.weight holds a NaN or an infinity",
        ),
        (
            {f"{LAYER}.scale_weight": torch.tensor(1.0)},
            f"{LAYER}.weight has two scales, {LAYER}.",
        ),
        (
            {f"{LAYER}.weight_scale_inv": torch.ones(8, 2)},
            f"{LAYER}.weight has two scales, {LAYER}.",
        ),
        *(
            (
                {f"{LAYER}.weight": torch.ones(SHAPE).to(dtype)},
                f"{LAYER}.weight is stored as {kind} and has the scale {LAYER}.weight_scale, which is read of float8",
            )
            for dtype, kind in (
                (torch.bfloat16, "BF16"),
                (torch.float16, "F16"),
                (torch.float32, "F32"),
                (torch.int8, "I8"),
            )
        ),
        ({"img_out.weight_scale": torch.ones(1)}, "there is a scale for img_out.weight, but no such tensor"),
        ({f"{LAYER}.bias": torch.ones(1024).to(torch.int8)}, f"{LAYER}.bias is stored as I8; known are"),
        (
            {f"{LAYER}.comfy_quant": torch.tensor([1, 2], dtype=torch.uint8)},
            f"{LAYER}.comfy_quant is no JSON",
        ),
        (
            {f"{LAYER}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            f"{LAYER} is quantized as 'nvfp4', which is not read; known are float8_e4m3fn and float8_e5m2",
        ),
    ],
)
def test_a_scale_or_a_format_that_is_not_read_is_refused_by_name(in_bfl, tmp_path, change, message):
    with pytest.raises(DataError) as caught:
        open_flux(spoiled(in_bfl, tmp_path, lambda file: file.update(change)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            '{"layers": {"a": {"format": "int8_tensorwise", "convrot": true}}}',
            "a is quantized as 'int8_tensorwise'",
        ),
        ('{"layers": {"a": "mxfp8"}}', "a is quantized as 'mxfp8'"),
        ('{"layers": []}', "its metadata _quantization_metadata has no layers"),
        ("[1]", "its metadata _quantization_metadata has no layers"),
        ("[" * 100_000, "its metadata _quantization_metadata has no layers"),
    ],
)
def test_a_format_in_the_metadata_that_is_not_read_is_refused(in_bfl, tmp_path, metadata, message):
    with pytest.raises(DataError) as caught:
        open_flux(spoiled(in_bfl, tmp_path, lambda _: None, {"_quantization_metadata": metadata}))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (torch.float8_e4m3fn, 0x7F),
        (torch.float8_e4m3fn, 0xFF),
        (torch.float8_e5m2, 0x7C),
        (torch.float8_e5m2, 0xFE),
    ],
)
def test_a_nan_in_float8_is_named_and_nothing_is_written(in_bfl, tmp_path, dtype, code):
    file, _ = plain(in_bfl, dtype)
    name = "single_blocks.1.linear2.weight"
    file[name].view(torch.uint8)[3, 5] = code
    save_file(file, tmp_path / "flux.safetensors")
    with pytest.raises(DataError, match=rf"{name} holds a NaN or an infinity; nothing was written"):
        quantize(tmp_path / "flux.safetensors", ["q8_0"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.gguf"))


@pytest.mark.parametrize("name", ["fp8_e4m3fn_scaled", "q6_k"])
def test_decoding_needs_the_memory_of_a_few_chunks(ours, tmp_path, name):
    """The model has 34 MB in float32, and its largest tensor 5 MB."""
    source = open_flux(ours[name])
    formats = {"bf16_single": QUANTIZERS["bf16_single"]}
    convert(source, formats, tmp_path, stem="warm")
    tracemalloc.start()
    convert(source, formats, tmp_path, stem="m")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
