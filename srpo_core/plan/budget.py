"""The limit of what a run may cost, `resources.max_cost`, which is checked before each stage."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Final

from srpo_core.config import ResourceSettings, Settings
from srpo_core.errors import BudgetError, ConfigError
from srpo_core.plan.cluster import GB, TERA, Cluster
from srpo_core.plan.making import Counter
from srpo_core.runtime.costs import SECONDS_PER_HOUR, money_text
from srpo_core.runtime.resume import can_resume
from srpo_core.runtime.timings import (
    WITHOUT_GPU,
    Attempt,
    attempts_in,
    continued_attempts,
    devices_of,
    experiment_key,
    newest_attempts,
)
from srpo_core.workspace.stage_graph import read_graph

COMMAND: Final = "planned-hours"
_BANDWIDTH: Final = 300 * GB
_MEMORY: Final = 80 * GB  # of a device; no time depends on it
_ERROR: Final = "srpo: error: "


def require_budget(stage: str, settings: Settings) -> None:
    """Raise if a run would cost more than `resources.max_cost` with a stage that is about to start.

    The cost so far is measured: of all attempts with these settings to run this stage and those before it, also by an
    earlier command that was killed or stopped. What DVC takes from the cache of a run with other settings costs nothing.
    The cost of the stage is planned; if it resumes, its earlier attempts are a part of that.

    Raises:
        BudgetError: it would; the message has all figures.
        ConfigError: the cost of the stage cannot be planned.
    """
    resources = settings.resources
    if resources.max_cost is None:
        return
    names = [one.name for one in read_graph(Path()).stages]  # in the order in which they run
    experiment = experiment_key()
    # by their notes: the inputs of all stages before this one may take minutes to hash
    earlier = [newest_attempts(attempts_in(experiment, name)) for name in names[: names.index(stage)]]
    before = sum(_money_of_run(attempts, resources) for attempts in earlier)
    own = _money_of_run(continued_attempts(stage), resources)
    planned = 0.0 if stage in WITHOUT_GPU else planned_money(stage, hours_by_stage(), resources)
    whole = max(own, planned) if own and can_resume(stage) else own + planned
    if before + whole <= resources.max_cost:
        return
    spent, rest, limit = (
        money_text({resources.currency: amount}) for amount in (before + own, whole - own, resources.max_cost)
    )
    raise BudgetError(
        f"{stage} is not started: this run has cost {spent}, {stage} would cost {rest} by plan, and "
        f"resources.max_cost is {limit}. Nothing is lost: to go on, repeat the command with "
        f"--set resources.max_cost={_enough(before + whole)} or more; for 'dvc repro' set it in params.yaml"
    )


def planned_money(stage: str, hours: Mapping[str, float], resources: ResourceSettings) -> float:
    """Return the price of a stage's planned wall hours, on the devices that the plan divides its work among."""
    assert resources.price is not None, "the settings require a price with max_cost"
    devices, _ = devices_of(stage, resources)
    return hours.get(stage, 0.0) * min(devices, resources.train_workers) * resources.price


def planned_hours(settings: Settings, counter: Counter | None = None) -> dict[str, float]:
    """Plan the wall hours of each stage that uses a device, by `resources.hardware`. Needs torch, but no weights.

    Raises:
        ConfigError: `resources.hardware` is null, or the plan needs other settings.
        ArtifactError: the base has no configuration from which it could be planned.
    """
    hardware = settings.resources.hardware
    if hardware is None:
        raise ConfigError(
            "resources.hardware is null: set the rates of the device by which hours are planned"
        )
    cluster = Cluster(
        gpus=settings.resources.train_workers,
        memory=_MEMORY,
        price=settings.resources.price,
        mfu=hardware.mfu,
        peak_flops=hardware.tflops * TERA,
        bandwidth=_BANDWIDTH,
        float32=hardware.float32_tflops / hardware.tflops,
    )
    hours: dict[str, float] = {}
    for spent in (counter or Counter()).plan(settings, cluster).spending:
        hours[spent.stage] = hours.get(spent.stage, 0.0) + spent.seconds / SECONDS_PER_HOUR
    return hours


def hours_by_stage() -> dict[str, float]:
    """Return `planned_hours` of params.yaml, computed in a process of its own: a plan must not touch a stage's results.

    Raises:
        ConfigError: there is no plan; the message has the reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", COMMAND],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(
            f"resources.max_cost cannot be checked, because the run cannot be planned: {reason.removeprefix(_ERROR)}. "
            "Set max_cost to null to run without a limit"
        )
    return {stage: float(hours) for stage, hours in json.loads(done.stdout).items()}


def _money_of_run(attempts: Sequence[Attempt], resources: ResourceSettings) -> float:
    """Return what attempts with the present settings cost, at the price when they ran, or at the present one without it."""
    assert resources.price is not None, "the settings require a price with max_cost"
    experiment, total = experiment_key(), 0.0
    for one in attempts:
        if one.experiment == experiment:
            comparable = one.price if one.currency == resources.currency else None
            total += (comparable or resources.price) * one.device_seconds / SECONDS_PER_HOUR
    return total


def _enough(amount: float) -> str:
    """Return an amount in whole cents that is not less."""
    return f"{ceil(100 * amount) / 100:.12g}"
