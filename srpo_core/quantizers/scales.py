"""The scales of float8 files, by the conventions in which they are published.

- ComfyUI to 0.3.64: a marker `scaled_fp8`, and `X.scale_weight` beside `X.weight` (`X.scale_input` is for activations)
- ComfyUI since then, and our own files: `X.weight_scale` (`X.input_scale` is for activations), and the format of each
  layer X in the file's metadata `_quantization_metadata`, or as JSON in a tensor `X.comfy_quant`
- others: `X.weight_scale_inv` for blocks of 128 × 128, which is a factor too in spite of its name

A weight is the stored number times its scale: one for the tensor, or one for each row, column or block.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.chunks import ITEM_BYTES
from srpo_core.quantizers.decoding import FLOAT8
from srpo_core.quantizers.stored import Scale, Stored

if TYPE_CHECKING:
    import numpy as np

MARKER: Final = "scaled_fp8"
METADATA: Final = "_quantization_metadata"
WEIGHT_SCALES: Final = (".weight_scale", ".scale_weight", ".weight_scale_inv")
OF_ACTIVATIONS: Final = (".input_scale", ".scale_input")
LAYER_FORMAT: Final = ".comfy_quant"
BLOCK: Final = 128
MATRIX: Final = 2
# A tensor with the format of a layer, or with the scale of a matrix, is small.
_LONGEST_FORMAT: Final = 4096


def with_scales(tensors: Mapping[str, Stored], where: str) -> dict[str, Stored]:
    """Attach the scales to the weights that they belong to; returns the weights alone.

    Raises:
        DataError: a scale has no weight, does not fit it, is not a positive number, or is of a format that is not read;
            a weight has two scales, or is not stored in float8.
    """
    weights: dict[str, Stored] = {}
    scales: dict[str, tuple[str, Stored]] = {}
    for name, stored in tensors.items():
        end = next((end for end in WEIGHT_SCALES if name.endswith(end)), None)
        if end:
            scaled = f"{name.removesuffix(end)}.weight"
            if scaled in scales:
                raise DataError(
                    f"{where}: {scaled} has two scales, {scales[scaled][0]} and {name}, of which at most one is right: "
                    "start from a file in one format, or from the file in full precision"
                )
            scales[scaled] = name, stored
        elif name.endswith(LAYER_FORMAT):
            _require_known(_layer_format(name, stored, where), name, where)
        elif name != MARKER and not name.endswith(OF_ACTIVATIONS):
            weights[name] = stored
    for name, (given, scale) in scales.items():
        if name not in weights:
            raise DataError(f"{where}: there is a scale for {name}, but no such tensor: fetch the file again")
        if weights[name].dtype not in FLOAT8:
            raise DataError(
                f"{where}: {name} is stored as {weights[name].dtype} and has the scale {given}, which is read of float8 "
                f"({', '.join(FLOAT8)}) alone: start from a float8 file, or from the file in full precision"
            )
        weights[name] = replace(weights[name], scale=_scale(scale, weights[name].shape, name, where))
    return weights


def require_known_formats(metadata: Mapping[str, str], where: str) -> None:
    """Check the formats of layers that a file's metadata names. Raises `DataError` for one that is not read."""
    if METADATA not in metadata:
        return
    try:
        layers = json.loads(metadata[METADATA])["layers"].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{where}: its metadata {METADATA} has no layers: fetch the file again") from None
    for layer, entry in layers:
        _require_known(entry, layer, where)


def kind_of_source(tensors: Iterable[Stored], *, gguf: bool) -> str | None:
    """Describe how weights are quantized, such as `fp8 float8_e4m3fn, scaled`; None if they are whole floats."""
    some = list(tensors)
    types = sorted({stored.dtype for stored in some if stored.dtype not in ITEM_BYTES})
    if not types:
        return None
    if gguf:
        return f"GGUF {', '.join(types)}"
    scaled = ", scaled" if any(stored.scale is not None for stored in some) else ""
    return f"fp8 {', '.join(FLOAT8[dtype] for dtype in types)}{scaled}"


def _layer_format(name: str, stored: Stored, where: str) -> object:
    """Read the JSON of a tensor of bytes. Raises `DataError`."""
    size = stored.shape[0] if len(stored.shape) == 1 else 0
    text = stored.file[stored.start : stored.start + min(size, _LONGEST_FORMAT)]
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise DataError(f"{where}: {name} is no JSON: fetch the file again") from None


def _require_known(entry: object, layer: str, where: str) -> None:
    found = entry.get("format") if isinstance(entry, dict) else entry
    if found not in FLOAT8.values():
        known = " and ".join(FLOAT8.values())
        raise DataError(
            f"{where}: {layer.removesuffix(LAYER_FORMAT)} is quantized as {found!r}, which is not read; known are {known}, "
            "and the types of GGUF: give one of them, or the file in full precision"
        )


def _scale(stored: Stored, shape: tuple[int, ...], name: str, where: str) -> Scale:
    """Read a scale and fit it to its weight. Raises `DataError`."""
    import numpy as np

    if stored.dtype not in ITEM_BYTES or len(shape) != MATRIX or len(stored.shape) > MATRIX:
        raise DataError(
            f"{where}: the scale of {name} has the type {stored.dtype} and the shape {list(stored.shape)}, which is not "
            "read: give a file in float8 with scales in float32, in GGUF, or in full precision"
        )
    values = _values(stored)
    if not np.isfinite(values).all():
        raise DataError(f"{where}: the scale of {name} holds a NaN or an infinity: fetch the file again")
    if not (values > 0).all():
        raise DataError(
            f"{where}: the scale of {name} holds {float(values.min()):g}, and a scale is above 0: fetch the file again, or "
            "start from the file in full precision"
        )
    # one for all weights, or one for each row, or a matrix of them
    groups = (1, 1) if values.size == 1 else (*stored.shape, 1)[:MATRIX]
    sides = [_group(length, count) for length, count in zip(shape, groups, strict=True)]
    if None in sides:
        raise DataError(
            f"{where}: the scale of {name} has the shape {list(stored.shape)}, which does not divide its shape "
            f"{list(shape)}: fetch the file again"
        )
    rows, columns = sides
    assert rows
    assert columns
    return Scale(values.reshape(groups), rows, columns)


def _group(length: int, count: int) -> int | None:
    """Return how many rows or columns share each of `count` scales; None if `count` does not divide them."""
    if count == -(-length // BLOCK) and length > BLOCK:
        return BLOCK
    return length // count if count and length % count == 0 else None


def _values(stored: Stored) -> "np.ndarray[Any, np.dtype[np.float32]]":
    import numpy as np

    count = stored.row_items * (stored.shape[0] if stored.shape else 1)
    chunks = [chunk.float32 for _, chunk in stored.chunks(0, count)]
    return np.concatenate(chunks) if chunks else np.empty(0, np.float32)
