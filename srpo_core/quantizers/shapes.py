"""The shape of every tensor of a FLUX transformer, from its config.json or from the widths of its first layers.

The table repeats what diffusers' FluxTransformer2DModel builds, so that a file can be checked without importing torch;
tests compare it with that class.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.key_map import Architecture

CLASS: Final = "FluxTransformer2DModel"
# diffusers' values of what a config.json leaves out
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "patch_size": 1,
        "in_channels": 64,
        "out_channels": None,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": False,
        "axes_dims_rope": (16, 56, 56),
    }
)
_WIDTHS: Final = (
    "patch_size",
    "in_channels",
    "attention_head_dim",
    "num_attention_heads",
    "joint_attention_dim",
    "pooled_projection_dim",
)
_COUNTS: Final = ("num_layers", "num_single_layers")
_TIMESTEP: Final = 256  # channels of the sinusoidal embedding
_MATRIX: Final = 2
# Rows and columns of each layer by the end of its diffusers name, the longest end first where two fit.
# H is the hidden width; D the width of a head; a number n is n·H.
_LAYERS: Final[tuple[tuple[str, object, object], ...]] = (
    ("x_embedder", "H", "in"),
    ("context_embedder", "H", "joint"),
    ("timestep_embedder.linear_1", "H", "timestep"),
    ("guidance_embedder.linear_1", "H", "timestep"),
    ("text_embedder.linear_1", "H", "pooled"),
    (".linear_2", "H", "H"),
    (".norm1.linear", 6, "H"),
    (".norm1_context.linear", 6, "H"),
    (".norm.linear", 3, "H"),
    ("norm_out.linear", 2, "H"),
    (".net.0.proj", 4, "H"),
    (".net.2", "H", 4),
    (".proj_mlp", 4, "H"),
    (".proj_out", "H", 5),
    ("proj_out", "out", "H"),
)


@dataclass(frozen=True)
class Widths:
    """The widths that distinguish one FLUX from another: hidden, head, inputs and outputs, in channels."""

    hidden: int
    head: int
    in_channels: int
    joint: int
    pooled: int
    out: int

    def shape(self, diffusers: str) -> tuple[int, ...]:
        """Return the shape of a tensor by its diffusers name."""
        layer, _, kind = diffusers.rpartition(".")
        if layer.rpartition(".")[2].startswith("norm_"):
            return (self.head,)
        ends = ((rows, columns) for end, rows, columns in _LAYERS if layer.endswith(end))
        rows, columns = next(ends, ("H", "H"))
        return (self._width(rows), self._width(columns)) if kind == "weight" else (self._width(rows),)

    def _width(self, of: object) -> int:
        if isinstance(of, int):
            return of * self.hidden
        named = {
            "H": self.hidden,
            "in": self.in_channels,
            "joint": self.joint,
            "timestep": _TIMESTEP,
            "pooled": self.pooled,
            "out": self.out,
        }
        return named[str(of)]


def widths_of_config(config: Mapping[str, Any], architecture: Architecture, where: str) -> Widths:
    """Return the widths that a config.json states, after comparing its other values with the names of the tensors.

    Raises:
        DataError: it is of another class, a value is missing or out of range, or it has other blocks than the weights.
    """
    if config.get("_class_name") != CLASS:
        # transformers' config.json has other keys
        kind = next(
            (config[key] for key in ("_class_name", "architectures", "model_type") if config.get(key)), None
        )
        raise DataError(
            f"{where}: its config.json is of {kind!r} and not of {CLASS}: give the config.json of these weights"
        )
    values = {**DEFAULTS, **{name: config[name] for name in DEFAULTS if name in config}}
    for name in (*_WIDTHS, *_COUNTS):
        least = 0 if name in _COUNTS else 1
        if type(values[name]) is not int or values[name] < least:
            raise DataError(
                f"{where}: its config.json has {name} {values[name]!r}: it needs an integer of at least {least}"
            )
    out = values["in_channels"] if values["out_channels"] is None else values["out_channels"]
    if type(out) is not int or out < 1:
        raise DataError(
            f"{where}: its config.json has out_channels {out!r}: it needs an integer of at least 1, or null"
        )
    axes = values["axes_dims_rope"]
    if not isinstance(axes, list | tuple) or not all(type(axis) is int and axis > 0 for axis in axes):
        raise DataError(
            f"{where}: its config.json has axes_dims_rope {axes!r}: it needs a list of integers above 0"
        )
    if sum(axes) != values["attention_head_dim"]:
        raise DataError(
            f"{where}: its config.json has axes_dims_rope {list(axes)}, whose sum is not attention_head_dim "
            f"{values['attention_head_dim']}: give the config.json of these weights"
        )
    found = {
        "num_layers": architecture.num_double,
        "num_single_layers": architecture.num_single,
        "guidance_embeds": architecture.guidance,
    }
    for name, value in found.items():
        if bool(values[name]) != value if name == "guidance_embeds" else values[name] != value:
            raise DataError(
                f"{where}: its config.json has {name} {values[name]!r}, and the weights have {value!r}: give the config.json "
                "of these weights"
            )
    return Widths(
        hidden=values["num_attention_heads"] * values["attention_head_dim"],
        head=values["attention_head_dim"],
        in_channels=values["in_channels"],
        joint=values["joint_attention_dim"],
        pooled=values["pooled_projection_dim"],
        out=values["patch_size"] ** 2 * out,
    )


def widths_of_tensors(shapes: Mapping[str, tuple[int, ...]], where: str) -> Widths:
    """Return the widths that the first and the last layers have, for a file without config.json.

    shapes: by BFL name.

    Raises:
        DataError: one of these layers has no matrix, or heads do not divide the hidden width.
    """
    names = ("img_in", "txt_in", "vector_in.in_layer", "final_layer.linear")
    matrices = [shapes[f"{name}.weight"] for name in names]
    for name, shape in zip(names, matrices, strict=True):
        if len(shape) != _MATRIX or 0 in shape:
            raise DataError(
                f"{where}: {name}.weight has the shape {list(shape)}, and a matrix is expected: fetch it again"
            )
    hidden = matrices[0][0]
    norm = next(
        (shape for name, shape in shapes.items() if name.endswith("norm.query_norm.scale")), (hidden,)
    )
    if len(norm) != 1 or not norm[0] or hidden % norm[0]:
        raise DataError(
            f"{where}: heads of width {list(norm)} do not divide the hidden width {hidden}: fetch it again"
        )
    return Widths(hidden, norm[0], matrices[0][1], matrices[1][1], matrices[2][1], matrices[3][0])


def require_shapes(
    shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str, by: str
) -> None:
    """Compare shapes by the stored names. Raises `DataError` for the first that differs.

    by: what the expected shapes follow from.
    """
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise DataError(
                f"{where}: {name} has the shape {list(shapes[name])}, and by {by} it should be {list(shape)}: fetch the file "
                "again, or give the config.json of these weights"
            )
