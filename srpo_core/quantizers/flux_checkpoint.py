"""The tensors of a FLUX transformer on disk, under both of their names, in chunks.

Files are memory-mapped and pages are released once they are read, so memory does not grow with the checkpoint.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import DataError
from srpo_core.quantizers.chunks import Chunk, largest_magnitude
from srpo_core.quantizers.key_map import (
    Architecture,
    Joint,
    Rows,
    architecture_of,
    bfl_names,
    diffusers_names,
    require_exact,
)
from srpo_core.quantizers.shapes import Widths, require_shapes, widths_of_config, widths_of_tensors
from srpo_core.quantizers.stored import Stored

# The keys under which our own single files, safetensors and GGUF, hold the model's config.json.
CONFIG_METADATA: Final = "srpo_config"
GGUF_CONFIG: Final = "srpo.config"

# FLUX.1's heads are 128 wide, with these rotary axes. Other widths require a config.json.
_FLUX_HEAD: Final = 128
_FLUX_AXES: Final = (16, 56, 56)


class FluxCheckpoint:
    """The tensors of a checkpoint under both names; `joints`: in the order of the architecture."""

    def __init__(
        self,
        files: Sequence[Path],
        tensors: Mapping[str, Stored],
        config: Mapping[str, Any] | None,
        quantized: str | None = None,
    ) -> None:
        """Use `open_flux`.

        quantized: how the weights are quantized; None if they are whole floats.

        Raises:
            DataError: names or shapes are not those of the architecture that config.json, or else the first layers, state.
        """
        self.files, self.quantized = files, quantized
        self.where = str(files[0] if len(files) == 1 else files[0].parent)
        self._tensors = tensors
        shapes = {name: stored.shape for name, stored in tensors.items()}
        self.bfl_naming = "img_in.weight" in tensors
        self.architecture: Architecture = architecture_of(shapes, bfl=self.bfl_naming)
        given = None if config is None else widths_of_config(config, self.architecture, self.where)
        joints = self.architecture.joints()
        stored_names = {
            name for joint in joints for name in ((joint.bfl,) if self.bfl_naming else joint.diffusers)
        }
        require_exact(shapes, stored_names, self.where)
        self.joints: Sequence[Joint] = joints
        self._require_shapes(shapes, given)
        own = {name: (Rows(name, 0, shape[0]),) for name, shape in shapes.items()}
        self._bfl: Mapping[str, tuple[Rows, ...]] = own if self.bfl_naming else bfl_names(shapes)
        self._diffusers: Mapping[str, tuple[Rows, ...]] = diffusers_names(shapes) if self.bfl_naming else own
        self.config: Mapping[str, Any] | None = config or self._inferred_config()
        # By tensor, number of its first weight and size of a chunk, so that further files, and the pass for a scale, reuse it.
        self._largest: dict[tuple[str, int, int], float] = {}

    def _require_shapes(self, shapes: Mapping[str, tuple[int, ...]], given: Widths | None) -> None:
        """Compare the stored shapes with those of the architecture. Raises `DataError`."""
        in_bfl = {
            joint.bfl: shapes[joint.bfl if self.bfl_naming else joint.diffusers[0]] for joint in self.joints
        }
        widths = given or widths_of_tensors(in_bfl, self.where)
        expected: dict[str, tuple[int, ...]] = {}
        for joint in self.joints:
            parts = {name: widths.shape(name) for name in joint.diffusers}
            rows = sum(shape[0] for shape in parts.values())
            expected |= {joint.bfl: (rows, *parts[joint.diffusers[0]][1:])} if self.bfl_naming else parts
        require_shapes(
            shapes, expected, self.where, "the widths of its first layers" if given is None else "config.json"
        )

    @property
    def warning(self) -> str | None:
        """What a file that is written from quantized weights must say; None if the weights are whole floats."""
        if self.quantized is None:
            return None
        return f"source was already quantized ({self.quantized}): quality is at most that of the source"

    @property
    def hidden(self) -> int:
        """The width of the model."""
        return self.shape(self.joints[0].bfl, bfl=True)[0]

    def shape(self, name: str, *, bfl: bool) -> tuple[int, ...]:
        """Return the shape of a tensor by its name in one of the namings."""
        pieces = self._rows(name, bfl=bfl)
        height = sum(piece.stop - piece.start for piece in pieces)
        return (height, *self._tensors[pieces[0].tensor].shape[1:])

    def chunks(self, name: str, *, bfl: bool) -> Iterator[Chunk]:
        """Yield the weights of a tensor row by row, in chunks of at most `CHUNK`.

        Raises:
            DataError: a weight is NaN or infinite.
        """
        for piece in self._rows(name, bfl=bfl):
            stored = self._tensors[piece.tensor]
            count = (piece.stop - piece.start) * stored.row_items
            for first, chunk in stored.chunks(piece.start * stored.row_items, count):
                key = (piece.tensor, first, chunk.stored.size)
                largest = self._largest.get(key)
                if largest is None:
                    largest = self._largest[key] = largest_magnitude(chunk.stored, chunk.dtype)
                if largest == math.inf:
                    raise DataError(
                        f"{self.where}: {piece.tensor} holds a NaN or an infinity; nothing was written"
                    )
                yield replace(chunk, known_largest=largest)

    def stored_as(self, name: str, dtype: str, *, bfl: bool) -> bool:
        """Return whether all of a tensor is stored as floats of this type."""
        some = [self._tensors[piece.tensor] for piece in self._rows(name, bfl=bfl)]
        return all(stored.is_plain and stored.dtype == dtype for stored in some)

    def _rows(self, name: str, *, bfl: bool) -> tuple[Rows, ...]:
        return (self._bfl if bfl else self._diffusers)[name]

    def _inferred_config(self) -> Mapping[str, Any] | None:
        """Infer config.json from the shapes if heads are as wide as FLUX.1's, else return None."""
        shape = {
            name: self.shape(f"{name}.weight", bfl=True)
            for name in ("img_in", "txt_in", "vector_in.in_layer")
        }
        norm = next((joint.bfl for joint in self.joints if joint.bfl.endswith("norm.query_norm.scale")), None)
        head = None if norm is None else self.shape(norm, bfl=True)[0]
        if head != _FLUX_HEAD:
            return None
        out_channels = self.shape("final_layer.linear.weight", bfl=True)[0]
        in_channels = shape["img_in"][1]
        return {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": head,
            "axes_dims_rope": list(_FLUX_AXES),
            "guidance_embeds": self.architecture.guidance,
            "in_channels": in_channels,
            "joint_attention_dim": shape["txt_in"][1],
            "num_attention_heads": self.hidden // head,
            "num_layers": self.architecture.num_double,
            "num_single_layers": self.architecture.num_single,
            "out_channels": None if out_channels == in_channels else out_channels,
            "patch_size": 1,
            "pooled_projection_dim": shape["vector_in.in_layer"][1],
        }
