"""Encoded prompts on disk: the output of stage embed, read by the stages that generate images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.artifacts import EMBEDDINGS, replacing, require
from srpo_core.errors import ArtifactError
from srpo_core.prompts import TEXTS
from srpo_core.protocols import Condition

if TYPE_CHECKING:
    from torch import Tensor

ALARM: Final = "alarm"  # the validation prompts of early stop
LATENTS = "latents"


def write_embeddings(
    split: str,
    prompts: Sequence[str],
    styles: Sequence[str],
    condition: Condition,
    latents: "Tensor | None" = None,
) -> None:
    """Write the prompts of a split, their style lists, their embeddings, and the latents of their real images."""
    from safetensors.torch import save_file

    assert LATENTS not in condition.tensors, "the name is taken by the latents of real images"
    tensors = {name: tensor.contiguous() for name, tensor in condition.tensors.items()}
    if latents is not None:
        tensors[LATENTS] = latents.contiguous()
    # a single entry: safetensors writes several in an order that changes from run to run
    metadata = {TEXTS: json.dumps({"prompts": list(prompts), "styles": list(styles)})}
    with replacing(_path(split)) as partial:
        save_file(tensors, partial, metadata)


def read_embeddings(split: str) -> tuple[list[str], list[str], Condition]:
    """Read (prompts, styles, condition) of a split: train, validation, alarm or test.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    with _opened(split) as file:
        texts = json.loads(file.metadata()[TEXTS])
        condition = Condition({name: file.get_tensor(name) for name in file.keys() if name != LATENTS})  # noqa: SIM118
        return texts["prompts"], texts["styles"], condition


def read_latents(split: str) -> "Tensor":
    """Read the packed latents (N, S, C) of one real image per prompt of a split.

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
