"""torch.compile of a transformer's blocks and of a VAE's decoder: diffusers' regional compilation.

All blocks of a kind share their graphs. Each shape of the inputs, with and without gradients, needs graphs of its own.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from srpo_core.errors import ConfigError
from srpo_core.models.sharding import blocks

# Calls of different shapes for images of one size: with and without gradients, in micro-batches of two sizes.
CALLS_OF_A_SIZE: Final = 4
LAYOUTS: Final = 2  # of the inputs in memory: the first block of a kind may get other ones than the rest
HIT: Final = "torch._dynamo hit config."  # begins the message of the logger below


def compile_regions(transformer: Any, decoder: Any, *, num_sizes: int) -> None:
    """Let each block and the decoder be compiled when it is called, in place.

    num_sizes: number of image sizes in training. Samples and early stop may add another one.

    Raises:
        ConfigError: there is no C++ compiler.
    """
    import torch

    require_compiler()
    kinds = {type(block) for block in blocks(transformer)}
    limit = LAYOUTS * (len(kinds) + 1) * CALLS_OF_A_SIZE * (num_sizes + 1)
    # torch counts the graphs of all blocks together, and beyond its limits, usually 8, it runs further shapes uncompiled
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, limit)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, limit)
    for block in blocks(transformer):
        block.compile(dynamic=False)
    decoder.compile(dynamic=False)


@contextmanager
def uncompiled_calls_reported(report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` once with a line of text if torch gives up compiling calls within the context."""
    logger, watch = logging.getLogger("torch._dynamo.convert_frame"), _Watch(report)
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)


class _Watch(logging.Handler):
    """Reports the first message about the limit on graphs."""

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._report: Callable[[str], None] | None = report

    def emit(self, record: logging.LogRecord) -> None:
        if self._report is None or not str(record.msg).startswith(HIT):
            return
        report, self._report = self._report, None
        report(
            f"torch.compile: a function needs more than {record.args[1]} graphs, so calls of further shapes are not compiled, "  # type: ignore[index]
            "which is slower: use fewer train.buckets, or set train.compute.compile to false"
        )


def require_compiler() -> None:
    """Require the C++ compiler that torch.compile will call. Raises `ConfigError`."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConfigError(
            f"train.compute.compile needs a C++ compiler and {compiler} is not found: install it, point CXX to "
            "another, or set train.compute.compile to false"
        )
