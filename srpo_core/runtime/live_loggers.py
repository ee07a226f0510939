"""Loggers that show the figures of training while it runs: TensorBoard and W&B, beside the stage's own DVCLive files.

The stage's process writes them, outside the stage's outputs. A logger that fails is dropped with one warning.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from srpo_core.artifacts import home

log = logging.getLogger(__name__)

LOGIN_SECONDS: Final = 10.0  # W&B would wait for somebody to type a key


class LiveLogger(Protocol):
    """One logger of a run."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Write the figures of a step; steps ascend, and each is given once."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


@dataclass
class LiveLoggers:
    """The loggers of a run by name, those that work."""

    working: dict[str, LiveLogger]
    _last: int = field(default=0, init=False)

    def write(self, row: Mapping[str, float]) -> None:
        """Write a row of the progress file, unless a row of its step was written before."""
        step = int(row["step"])
        if step <= self._last:  # trained again after a restart of the workers, with the same figures
            return
        self._last = step
        figures = {f"train/{name}": value for name, value in row.items() if name != "step"}
        self._each(lambda logger: logger.write(step, figures))

    def close(self) -> None:
        """Close all loggers."""
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[LiveLogger], None]) -> None:
        for name, logger in list(self.working.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001  # of any kind: training does not depend on it
                del self.working[name]
                _warn(name, error)


class TensorBoard:
    """One event file in `.srpo/tensorboard/<run>`, which is written anew when a killed run resumes."""

    def __init__(self, run: str, settings: Mapping[str, Any]) -> None:
        """Create the file. The progress file has all steps, so an earlier event file is not needed."""
        # not `SummaryWriter`: after an error in its thread it would wait for that thread for ever
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.summary import text

        directory = home() / "tensorboard" / run
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self._events = EventsWriter(str(directory / "events"))
        self._write(0, text("settings", json.dumps(settings, indent=2, sort_keys=True)))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `LiveLogger`."""
        from tensorboardX.summary import scalar

        for name, value in figures.items():
            self._write(step, scalar(name, value))
        self._events.flush()

    def close(self) -> None:
        """See `LiveLogger`."""
        self._events.close()

    def _write(self, step: int, summary: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))


class WeightsAndBiases:
    """A run of W&B with the id of this run, which continues when a killed run resumes; see W&B for its variables.

    It receives settings and figures, and what W&B collects of machine and revision, but not the log of the stage.
    """

    def __init__(self, run: str, settings: Mapping[str, Any]) -> None:
        """Start or resume the run, in the project WANDB_PROJECT, or `srpo`."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "srpo"),
            id=run,
            resume="allow",
            dir=str(home()),
            config=dict(settings),
            settings=wandb.Settings(login_timeout=LOGIN_SECONDS, console="off", silent=True),
        )
        log.info("the logger wandb writes to %s", self._run.url or self._run.dir)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """See `LiveLogger`."""
        if step >= self._run.starting_step:  # 0, or the first step that the resumed run does not have
            self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See `LiveLogger`."""
        self._run.finish()


LOGGERS: Final[Mapping[str, Callable[[str, Mapping[str, Any]], LiveLogger]]] = MappingProxyType(
    {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
)


@contextmanager
def live_loggers(names: Sequence[str], run: str, settings: Mapping[str, Any]) -> Iterator[LiveLoggers]:
    """Open the loggers of `resources.loggers` for a run.

    run: a name that is the same when the run resumes; settings: shown beside the figures.
    """
    loggers = LiveLoggers({})
    for name in names:
        try:
            loggers.working[name] = LOGGERS[name](run, settings)
        except Exception as error:  # noqa: BLE001  # of any kind: training does not depend on it
            _warn(name, error)
    try:
        yield loggers
    finally:
        loggers.close()


def _warn(name: str, error: Exception) -> None:
    log.warning(
        "the logger %s failed and is off for the rest of this run: %s: %s", name, type(error).__name__, error
    )
