"""Encoded prompts on disk: the output of stage embed, read by the stages that generate images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from srpo_core.artifacts import EMBEDDINGS, replacing, require
from srpo_core.errors import ArtifactError
from srpo_core.prompts import TEXTS
from srpo_core.protocols import Condition
from srpo_core.weights.files import safetensors_head
from srpo_core.weights.shards import safetensors_entry

if TYPE_CHECKING:
    from torch import Tensor

ALARM: Final = "alarm"  # the validation prompts of early stop
LATENTS = "latents"


class EmbeddingsFile:
    """The tensors of a split's file, to which rows are written in any order."""

    def __init__(self, file: IO[bytes], rows: int, starts: Mapping[str, int]) -> None:
        self._file, self._starts = file, starts
        self._missing = dict.fromkeys(starts, rows)

    def write(self, first: int, tensors: "Mapping[str, Tensor]") -> None:
        """Write rows of some tensors, by name, from row `first` on."""
        import torch

        for name, rows in tensors.items():
            data = rows.contiguous().view(torch.uint8).numpy().data
            self._file.seek(self._starts[name] + first * (data.nbytes // max(len(rows), 1)))
            self._file.write(data)
            self._missing[name] -= len(rows)

    def require_complete(self) -> None:
        """Require that every row was written."""
        assert not any(self._missing.values()), f"rows of {self._missing} were not written"


@contextmanager
def embeddings_file(
    split: str,
    prompts: Sequence[str],
    styles: Sequence[str],
    like: Condition,
    latents: "Tensor | None" = None,
) -> Iterator[EmbeddingsFile]:
    """Write the prompts of a split and their style lists; yield the file to which the rows of the tensors are written.

    Only the rows that are passed to it are in memory, never all of a split. The file appears when it is complete.

    like: any rows of the embeddings, for their names, shapes and type; latents: likewise of the latents of real images,
    None if there are none.
    """
    assert LATENTS not in like.tensors, "the name is taken by the latents of real images"
    rows = like.tensors if latents is None else {**like.tensors, LATENTS: latents}
    shapes = {name: (len(prompts), *tensor.shape[1:]) for name, tensor in rows.items()}
    entries = [
        safetensors_entry(name, shapes[name], rows[name].dtype)
        for name in sorted(rows, key=lambda name: (-rows[name].dtype.itemsize, name))
    ]
    # a single entry of metadata: readers of safetensors may write several in an order that changes from run to run
    metadata = {TEXTS: json.dumps({"prompts": list(prompts), "styles": list(styles)})}
    head = safetensors_head(entries, metadata)
    starts = accumulate((entry.num_bytes for entry in entries), initial=len(head))
    with replacing(_path(split)) as partial, partial.open("wb") as file:
        file.write(head)
        written = EmbeddingsFile(
            file, len(prompts), dict(zip((entry.name for entry in entries), starts, strict=False))
        )
        yield written
        written.require_complete()


def write_embeddings(
    split: str,
    prompts: Sequence[str],
    styles: Sequence[str],
    condition: Condition,
    latents: "Tensor | None" = None,
) -> None:
    """Write a split whose embeddings, and latents of real images, are in memory; see `embeddings_file`."""
    with embeddings_file(split, prompts, styles, condition, latents) as file:
        file.write(0, condition.tensors)
        if latents is not None:
            file.write(0, {LATENTS: latents})


def read_embeddings(split: str) -> tuple[list[str], list[str], Condition]:
    """Read (prompts, styles, condition) of a split: train, validation, alarm or test.

    The tensors are mapped from the file: the system reads a row when it is used, and may drop it again.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    with _opened(split) as file:
        texts = json.loads(file.metadata()[TEXTS])
        condition = Condition({name: file.get_tensor(name) for name in file.keys() if name != LATENTS})  # noqa: SIM118
        return texts["prompts"], texts["styles"], condition


def read_latents(split: str) -> "Tensor":
    """Read the packed latents (N, S, C) of one real image per prompt of a split, mapped as by `read_embeddings`.

    Raises:
        ArtifactError: the file is missing, damaged, or holds no latents because `train.rollout.source` was online.
    """
    with _opened(split) as file:
        latents: Tensor = file.get_tensor(LATENTS)
        return latents


@contextmanager
def _opened(split: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    path = require(_path(split))
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): run 'dvc repro --force embed'") from error


def _path(split: str) -> Path:
    return EMBEDDINGS / f"{split}.safetensors"
