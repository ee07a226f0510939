"""Convert a checkpoint to files in several formats, in one pass over it, a chunk at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from srpo_core.artifacts import replacing
from srpo_core.errors import ConfigError
from srpo_core.quantizers.chunks import CHUNK, Chunk
from srpo_core.quantizers.encodings import Encoding
from srpo_core.quantizers.flux_checkpoint import CONFIG_METADATA, GGUF_CONFIG, FluxCheckpoint
from srpo_core.quantizers.key_map import HIGH_PRECISION, Joint
from srpo_core.quantizers.scales import METADATA
from srpo_core.weights.files import (
    CONFIG,
    GGUF_ALIGNMENT,
    WEIGHTS,
    Entry,
    HashedFile,
    gguf_head,
    hashed_file,
    safetensors_head,
)

if TYPE_CHECKING:
    import numpy as np

MATRIX: Final = 2
SCALE_SUFFIX: Final = "_scale"
# The keys under which a file says that its source was quantized.
WARNING_METADATA: Final = "srpo_warning"
GGUF_WARNING: Final = "srpo.warning"
# Errors are measured on at most this many evenly spaced chunks of a tensor, so on all of a small tensor.
MEASURED_CHUNKS: Final = 2


@dataclass(frozen=True)
class Format:
    """How a checkpoint is stored.

    encoding: from the BFL name and the shape of a tensor to its type; container: of the single file in BFL names;
    directory: whether a diffusers directory is written as well; file_type: llama.cpp's name of the whole file.
    """

    encoding: Callable[[str, tuple[int, ...]], Encoding]
    container: Literal["safetensors", "gguf"]
    directory: bool = False
    file_type: str = ""


@dataclass(frozen=True)
class Loss:
    """The loss of precision of one tensor.

    relative_error: ‖stored − weights‖ / ‖weights‖; clipped: share of the weights beyond the type's largest value;
    zeroed: share of the weights that were not 0 and became 0; measured: number of weights for `relative_error` and
    `zeroed`; meant: the format's type if `dtype` replaces it because it does not fit the rows.
    """

    dtype: str
    weights: int
    relative_error: float
    clipped: float
    zeroed: float
    measured: int
    meant: str | None = None


@dataclass(frozen=True)
class WrittenFile:
    """A complete file on disk, with the loss of each tensor by its name in the file."""

    path: Path
    num_bytes: int
    sha256: str
    losses: Mapping[str, Loss]


@dataclass(frozen=True)
class _Output:
    """A file to write: its format, path and naming."""

    format: Format
    path: Path
    bfl: bool

    def names(self, joint: Joint) -> tuple[str, ...]:
        return (joint.bfl,) if self.bfl else joint.diffusers


def is_block_weight(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor, by its BFL name, is the weight of a linear layer of a block: those are quantized."""
    return len(shape) == MATRIX and name.split(".", maxsplit=1)[0] not in HIGH_PRECISION


def convert(
    checkpoint: FluxCheckpoint,
    formats: Mapping[str, Format],
    target: Path,
    *,
    stem: str,
    advance: Callable[[int], None] = lambda _weights: None,
) -> dict[str, list[WrittenFile]]:
    """Write `checkpoint` in every format to `target`/<format>/; all files become visible together at the end.

    stem: single files are named <stem>-<format>; advance: called with the number of weights just written.

    Raises:
        DataError: a weight is a NaN or an infinity.
        ConfigError: a format needs a diffusers directory, and the checkpoint does not state its rotary axes.
    """
    outputs: dict[str, list[_Output]] = {}
    for name, chosen in formats.items():
        directory = target / name
        directory.mkdir(parents=True, exist_ok=True)
        outputs[name] = [_Output(chosen, directory / f"{stem}-{name}.{chosen.container}", bfl=True)]
        if chosen.directory:
            _require_config(checkpoint)
            outputs[name].append(_Output(chosen, directory / WEIGHTS, bfl=False))
    written: dict[_Output, dict[str, Loss]] = {output: {} for some in outputs.values() for output in some}
    with ExitStack() as stack:
        files = {output: stack.enter_context(hashed_file(output.path)) for output in written}
        for output, file in files.items():
            file.write(_head(checkpoint, output))
        for joint in checkpoint.joints:
            for output, file in files.items():
                for name in output.names(joint):
                    written[output][name] = _write_tensor(checkpoint, file, output, joint, name)
                    advance(written[output][name].weights)
    for output in written:
        if not output.bfl:
            with replacing(output.path.with_name(CONFIG)) as partial:
                partial.write_text(_config_text(checkpoint), encoding="utf-8")
    return {
        name: [
            WrittenFile(output.path, files[output].num_bytes, files[output].sha256, written[output])
            for output in some
        ]
        for name, some in outputs.items()
    }


def num_weights(checkpoint: FluxCheckpoint, formats: Mapping[str, Format]) -> int:
    """Count the weights that `convert` will write, over all files."""
    weights = sum(prod(checkpoint.shape(joint.bfl, bfl=True)) for joint in checkpoint.joints)
    return weights * sum(1 + chosen.directory for chosen in formats.values())


def _write_tensor(
    checkpoint: FluxCheckpoint, file: HashedFile, output: _Output, joint: Joint, name: str
) -> Loss:
    shape = checkpoint.shape(name, bfl=output.bfl)
    encoding = output.format.encoding(joint.bfl, shape)
    if checkpoint.stored_as(name, encoding.name, bfl=output.bfl):
        return _copy_tensor(checkpoint, file, output, name, meant=encoding.meant)
    scale = 1.0
    if encoding.scaled:
        largest = max(chunk.largest for chunk in checkpoint.chunks(name, bfl=output.bfl))
        scale = float(_float32(largest / encoding.largest)) or 1.0
    encode = encoding.encoder(scale)
    losses = _Losses(encoding, prod(shape), scale)
    for chunk in checkpoint.chunks(name, bfl=output.bfl):
        encoded = encode(chunk)
        file.write(encoded)
        losses.add(chunk, encoded)
    if encoding.scaled:
        file.write(_float32(scale).tobytes())
    _pad(file, output)
    return losses.result()


def _copy_tensor(
    checkpoint: FluxCheckpoint, file: HashedFile, output: _Output, name: str, *, meant: str | None
) -> Loss:
    """Copy a tensor that is already stored in the required type, without loss."""
    dtype, weights = "", 0
    for chunk in checkpoint.chunks(name, bfl=output.bfl):
        file.write(chunk.stored)
        dtype, weights = chunk.dtype, weights + chunk.stored.size
    _pad(file, output)
    return Loss(dtype, weights, relative_error=0.0, clipped=0.0, zeroed=0.0, measured=weights, meant=meant)


def _pad(file: HashedFile, output: _Output) -> None:
    if output.format.container == "gguf" and output.bfl:
        file.pad(GGUF_ALIGNMENT)


class _Losses:
    """Accumulates the loss of a tensor over its chunks."""

    def __init__(self, encoding: Encoding, weights: int, scale: float) -> None:
        self._encoding, self._weights, self._scale = encoding, weights, scale
        self._every = max(1, -(-weights // (CHUNK * MEASURED_CHUNKS)))
        self._chunks = self._clipped = self._zeroed = self._measured = 0
        self._error = self._norm = 0.0

    def add(self, chunk: Chunk, encoded: "np.ndarray[Any, Any]") -> None:
        import numpy as np

        limit = self._encoding.largest * self._scale
        # with a scale, the largest weight may exceed the limit by one rounding, because the scale is rounded
        if not self._encoding.scaled and chunk.largest > limit:
            self._clipped += int(np.count_nonzero(np.abs(chunk.float32) > limit))
        # a concatenated tensor has more chunks than its size requires
        room = self._measured + chunk.stored.size <= CHUNK * MEASURED_CHUNKS
        if self._chunks % self._every == 0 and room:
            exact = chunk.float32
            stored = self._encoding.decode(encoded) * np.float32(self._scale)  # a new array
            # a zero stays zero in every type
            self._zeroed += int(np.count_nonzero(exact)) - int(np.count_nonzero(stored))
            stored -= exact
            self._error += float(np.square(stored, out=stored).sum(dtype=np.float64))
            self._norm += float(np.square(exact).sum(dtype=np.float64))
            self._measured += exact.size
        self._chunks += 1

    def result(self) -> Loss:
        error = (self._error / self._norm) ** 0.5 if self._norm else 0.0
        return Loss(
            dtype=self._encoding.name,
            weights=self._weights,
            relative_error=error,
            clipped=self._clipped / max(self._weights, 1),
            zeroed=self._zeroed / max(self._measured, 1),
            measured=self._measured,
            meant=self._encoding.meant,
        )


def _head(checkpoint: FluxCheckpoint, output: _Output) -> bytes:
    entries = list(_entries(checkpoint, output))
    warning = {} if checkpoint.warning is None else {WARNING_METADATA: checkpoint.warning}
    if not output.bfl:
        return safetensors_head(entries, {"format": "pt"} | warning)
    config = (
        {} if checkpoint.config is None else {CONFIG_METADATA: json.dumps(checkpoint.config, sort_keys=True)}
    )
    if output.format.container == "gguf":
        named = {CONFIG_METADATA: GGUF_CONFIG, WARNING_METADATA: GGUF_WARNING}
        values = {named[key]: value for key, value in (config | warning).items()}
        head = gguf_head(entries, file_type=output.format.file_type, metadata=values)
        return head + bytes(-len(head) % GGUF_ALIGNMENT)
    scaled = [entry.name for entry in entries if entry.name.endswith(f".weight{SCALE_SUFFIX}")]
    layers = {name.removesuffix(f".weight{SCALE_SUFFIX}"): {"format": "float8_e4m3fn"} for name in scaled}
    quantization = {METADATA: json.dumps({"format_version": "1.0", "layers": layers})} if layers else {}
    return safetensors_head(entries, {"format": "pt"} | config | warning | quantization)


def _entries(checkpoint: FluxCheckpoint, output: _Output) -> Iterator[Entry]:
    for joint in checkpoint.joints:
        for name in output.names(joint):
            shape = checkpoint.shape(name, bfl=output.bfl)
            encoding = output.format.encoding(joint.bfl, shape)
            yield Entry(name, encoding.name, shape, encoding.num_bytes(prod(shape)))
            if encoding.scaled:
                yield Entry(f"{name}{SCALE_SUFFIX}", "F32", (), 4)


def _require_config(checkpoint: FluxCheckpoint) -> None:
    if checkpoint.config is None:
        raise ConfigError(
            f"{checkpoint.where} does not state its rotary axes, which a diffusers directory needs: give the "
            "directory with its config.json instead of a single file"
        )


def _config_text(checkpoint: FluxCheckpoint) -> str:
    return json.dumps(checkpoint.config, indent=2, sort_keys=True) + "\n"


def _float32(value: float) -> "np.float32":
    import numpy as np

    return np.float32(value)
