"""The names of FLUX's tensors in the original code (BFL) and in diffusers, in one table.

The table is in the order of the architecture. A BFL tensor concatenates the rows of several diffusers tensors (q, k,
v; in a single block also the MLP's first layer). The halves of the last modulation have different orders: (shift,
scale) in BFL, (scale, shift) in diffusers.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from srpo_core.errors import DataError

LINEAR: Final[Mapping[str, str]] = MappingProxyType({"weight": "weight", "bias": "bias"})
NORM: Final[Mapping[str, str]] = MappingProxyType({"scale": "weight"})

# These keep high precision in every format: they are small, and quantizing them doubles the error.
HIGH_PRECISION: Final = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in", "final_layer")


@dataclass(frozen=True)
class Layer:
    """A layer: its BFL name, the diffusers layers whose rows it concatenates, and the names of its tensors.

    swapped: the halves of the rows have the other order in diffusers.
    """

    bfl: str
    diffusers: tuple[str, ...]
    tensors: Mapping[str, str]
    swapped: bool


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a stored tensor."""

    tensor: str
    start: int
    stop: int


def _layer(bfl: str, *diffusers: str, tensors: Mapping[str, str] = LINEAR, swapped: bool = False) -> Layer:
    return Layer(bfl, diffusers, tensors, swapped)


def _stream(
    own: str, other: str, norm1: str, projections: tuple[str, str, str], feed_forward: str
) -> tuple[Layer, ...]:
    """List the layers of one stream of a double block, image or text; `*` is the number of the block."""
    block, attn = f"double_blocks.*.{own}", "transformer_blocks.*.attn"
    added = "added_" if own == "txt" else ""
    return (
        _layer(f"{block}_mod.lin", f"transformer_blocks.*.{norm1}.linear"),
        _layer(f"{block}_attn.qkv", *(f"{attn}.{name}" for name in projections)),
        _layer(f"{block}_attn.norm.query_norm", f"{attn}.norm_{added}q", tensors=NORM),
        _layer(f"{block}_attn.norm.key_norm", f"{attn}.norm_{added}k", tensors=NORM),
        _layer(f"{block}_attn.proj", f"{attn}.{other}"),
        _layer(f"{block}_mlp.0", f"transformer_blocks.*.{feed_forward}.net.0.proj"),
        _layer(f"{block}_mlp.2", f"transformer_blocks.*.{feed_forward}.net.2"),
    )


_TIME_TEXT: Final = "time_text_embed"
FIRST: Final = (
    _layer("img_in", "x_embedder"),
    _layer("txt_in", "context_embedder"),
    _layer("time_in.in_layer", f"{_TIME_TEXT}.timestep_embedder.linear_1"),
    _layer("time_in.out_layer", f"{_TIME_TEXT}.timestep_embedder.linear_2"),
    _layer("vector_in.in_layer", f"{_TIME_TEXT}.text_embedder.linear_1"),
    _layer("vector_in.out_layer", f"{_TIME_TEXT}.text_embedder.linear_2"),
)
GUIDANCE: Final = (  # FLUX.1-schnell has none
    _layer("guidance_in.in_layer", f"{_TIME_TEXT}.guidance_embedder.linear_1"),
    _layer("guidance_in.out_layer", f"{_TIME_TEXT}.guidance_embedder.linear_2"),
)
DOUBLE: Final = (
    *_stream("img", "to_out.0", "norm1", ("to_q", "to_k", "to_v"), "ff"),
    *_stream("txt", "to_add_out", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "ff_context"),
)
_SINGLE: Final = "single_transformer_blocks.*"
SINGLE: Final = (
    _layer("single_blocks.*.modulation.lin", f"{_SINGLE}.norm.linear"),
    _layer(
        "single_blocks.*.linear1",
        *(f"{_SINGLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
        f"{_SINGLE}.proj_mlp",
    ),
    _layer("single_blocks.*.norm.query_norm", f"{_SINGLE}.attn.norm_q", tensors=NORM),
    _layer("single_blocks.*.norm.key_norm", f"{_SINGLE}.attn.norm_k", tensors=NORM),
    _layer("single_blocks.*.linear2", f"{_SINGLE}.proj_out"),
)
LAST: Final = (
    _layer("final_layer.adaLN_modulation.1", "norm_out.linear", swapped=True),
    _layer("final_layer.linear", "proj_out"),
)


@dataclass(frozen=True)
class Joint:
    """A BFL tensor and the diffusers tensors whose rows it concatenates."""

    bfl: str
    diffusers: tuple[str, ...]
    swapped: bool

    def heights(self, rows: int, hidden: int) -> list[int]:
        """Rows of each diffusers tensor within the `rows` of the BFL one: equal, but for a single block's MLP."""
        parts = len(self.diffusers)
        if self.bfl.startswith("single_blocks.") and parts > 1:
            return [hidden] * (parts - 1) + [rows - hidden * (parts - 1)]
        return [rows // parts] * parts


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one FLUX from another, as far as names go."""

    num_double: int
    num_single: int
    guidance: bool

    def layers(self) -> Iterator[Layer]:
        """Every layer, in the order of the forward pass."""
        yield from (*FIRST, *(GUIDANCE if self.guidance else ()))
        for rows, count in ((DOUBLE, self.num_double), (SINGLE, self.num_single)):
            for number in range(count):
                for row in rows:
                    yield Layer(
                        row.bfl.replace("*", str(number)),
                        tuple(name.replace("*", str(number)) for name in row.diffusers),
                        row.tensors,
                        row.swapped,
                    )
        yield from LAST

    def joints(self) -> list[Joint]:
        """Every BFL tensor with its diffusers tensors, in the order of the forward pass."""
        return [
            Joint(f"{layer.bfl}.{own}", tuple(f"{name}.{other}" for name in layer.diffusers), layer.swapped)
            for layer in self.layers()
            for own, other in layer.tensors.items()
        ]


def architecture_of(names: Collection[str], *, bfl: bool) -> Architecture:
    """The architecture whose tensors `names` are, in one of the namings."""
    double, single = (
        ("double_blocks.", "single_blocks.") if bfl else ("transformer_blocks.", "single_transformer_blocks.")
    )
    guidance = GUIDANCE[0].bfl if bfl else GUIDANCE[0].diffusers[0]
    return Architecture(
        num_double=_count(names, double),
        num_single=_count(names, single),
        guidance=any(name.startswith(guidance) for name in names),
    )


def diffusers_names(bfl_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """For each diffusers tensor the rows of BFL tensors that it is made of."""
    hidden = bfl_shapes["img_in.weight"][0]
    made: dict[str, tuple[Rows, ...]] = {}
    for joint in architecture_of(bfl_shapes, bfl=True).joints():
        rows = bfl_shapes[joint.bfl][0]
        start = 0
        for name, height in zip(joint.diffusers, joint.heights(rows, hidden), strict=True):
            made[name] = _in_order(Rows(joint.bfl, start, start + height), joint.swapped)
            start += height
    return made


def bfl_names(diffusers_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Rows, ...]]:
    """For each BFL tensor the rows of diffusers tensors that it is made of."""
    return {
        joint.bfl: tuple(
            piece
            for name in joint.diffusers
            for piece in _in_order(Rows(name, 0, diffusers_shapes[name][0]), joint.swapped)
        )
        for joint in architecture_of(diffusers_shapes, bfl=False).joints()
    }


def require_exact(names: Collection[str], expected: Collection[str], where: str) -> None:
    """Raise `DataError` unless `names` are exactly those `expected` of FLUX."""
    missing, unknown = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
    if missing or unknown:
        odd = f"it lacks {missing[0]}" if missing else f"it also holds {unknown[0]}"
        raise DataError(
            f"{where} is no FLUX transformer: {len(missing)} tensors are missing and {len(unknown)} unknown; {odd}"
        )


def _in_order(rows: Rows, swapped: bool) -> tuple[Rows, ...]:
    if not swapped:
        return (rows,)
    middle = (rows.start + rows.stop) // 2
    return Rows(rows.tensor, middle, rows.stop), Rows(rows.tensor, rows.start, middle)


def _count(names: Collection[str], prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
    return len(numbers)
