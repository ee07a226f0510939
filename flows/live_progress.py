"""Artifacts in Prefect's UI while a stage runs: the share of its steps, its last figures, and the alarm's curve.

A stage reports by the lines that it prints, so that stages know nothing of Prefect.
"""

import re
import time
from collections.abc import Callable
from typing import Final

from prefect import get_run_logger
from prefect.artifacts import create_image_artifact, create_progress_artifact, update_progress_artifact

from srpo_core.report.alarm import ABOVE
from srpo_core.report.chart_image import evidence_image

_STEP: Final = re.compile(r"step (\d+) of (\d+)  (.+)")
_FIGURE: Final = re.compile(r"(\w+) (\S+)")
ALARM: Final = "alarm"
# an update is a request to the server
LEAST_SECONDS: Final = 5.0
_IN_SMALLER_UNIT: Final = 1.5  # 80 s rather than 1 min


class StepProgress:
    """Shows in the UI how far a stage is that prints 'step 3 of 30  name value  name value'; other lines do nothing."""

    def __init__(
        self, stage: str, threshold: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """threshold: the evidence at which training ends, drawn beside it; None: no evidence is drawn."""
        self._stage = stage
        self._threshold = threshold
        self._clock = clock
        self._curve: list[tuple[float, float]] = []
        self._first: tuple[float, int] | None = None
        self._updated = -LEAST_SECONDS
        self._artifact: object | None = None
        self._reachable = True

    def see(self, line: str) -> None:
        """Take a line that the stage printed. A server that does not answer ends the updates, and not the stage."""
        found = _STEP.fullmatch(line)
        if found is None or not self._reachable:
            return
        step, steps, figures = int(found[1]), int(found[2]), found[3]
        values = dict(_FIGURE.findall(figures))
        now = self._clock()
        self._first = self._first or (now, step)
        if self._threshold is not None and ALARM in values:
            self._curve.append((step, float(values[ALARM])))
        elif step < steps and now - self._updated < LEAST_SECONDS:
            return
        self._updated = now
        try:
            self._show(step, steps, figures, alarm=ALARM in values)
        except Exception as error:  # noqa: BLE001  # whatever Prefect raises: the stage must go on
            self._reachable = False
            get_run_logger().warning("the UI shows no further progress of %s: %s", self._stage, error)

    def _show(self, step: int, steps: int, figures: str, *, alarm: bool) -> None:
        text = f"{self._stage}: step {step} of {steps}{self._time_left(step, steps)}; {figures}"
        share = 100 * step / steps
        if self._artifact is None:
            self._artifact = create_progress_artifact(
                share, key=f"{self._stage}-progress".replace("_", "-"), description=text
            )
        else:
            update_progress_artifact(self._artifact, share, description=text)  # type: ignore[arg-type]
        if alarm and self._curve and self._threshold is not None:
            last = self._curve[-1][1]
            create_image_artifact(
                evidence_image(self._curve, self._threshold, ABOVE),
                key=ALARM,
                description=f"evidence of reward hacking after step {step}: {last:g}; training ends at {self._threshold:g}",
            )

    def _time_left(self, step: int, steps: int) -> str:
        assert self._first is not None
        begun, first = self._first
        if step in (first, steps):
            return ""
        seconds = (self._clock() - begun) / (step - first) * (steps - step)
        return f", {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < _IN_SMALLER_UNIT:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if hours < _IN_SMALLER_UNIT else f"{hours:.1f} h"
