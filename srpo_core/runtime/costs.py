"""What the stages of a run cost: wall time, device hours and money, as measured when they ran.

A release costs what its stages cost when they ran, whichever run that was. A run costs what the stages cost that ran in
it: one that DVC took from its cache costs it nothing.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from srpo_core.runtime.timings import Attempt, attempts_of, newest_attempts

SECONDS_PER_HOUR: Final = 3600
_DIGITS: Final = 6  # of hours and money: a millisecond has 3e-7 hours
_CENT: Final = 0.01

Hours = Annotated[float, Field(ge=0)]
Money = dict[Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f]{1,8}$")], Annotated[float, Field(ge=0)]]


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Total(_Figures):
    """A sum over stages. money: by currency; priced: whether every stage had a price, so that no money is missing."""

    wall_hours: Hours
    device_hours: Hours
    money: Money
    priced: bool


class StageCost(_Figures):
    """What a stage cost, over all attempts that led to its result.

    devices: of the last attempt, of `kind`; attempts: their number, more than 1 if it was killed and resumed; money: by
    currency; priced: whether all attempts had a price; cached: DVC took the result from its cache, so that it cost this
    run nothing; None if that is not known, as after `dvc repro`.
    """

    stage: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    wall_hours: Hours
    device_hours: Hours
    devices: Annotated[int, Field(ge=1)]
    kind: Literal["GPU", "machine"]
    attempts: Annotated[int, Field(ge=1)]
    money: Money
    priced: bool
    cached: bool | None


class RunCost(_Figures):
    """What the stages cost that have been timed, in the order of the pipeline."""

    stages: Annotated[tuple[StageCost, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> Total:
        """What all stages cost when they ran: the cost of a release."""
        return _sum(self.stages)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def this_run(self) -> Total | None:
        """What this run cost; None if it is not known which stages ran in it."""
        if any(stage.cached is None for stage in self.stages):
            return None
        return _sum([stage for stage in self.stages if not stage.cached])

    @property
    def cached(self) -> list[str]:
        """The stages that DVC took from its cache."""
        return [stage.stage for stage in self.stages if stage.cached]


def measured_cost(
    stages: Sequence[str], root: Path | None = None, *, cached: Collection[str] | None = None
) -> RunCost | None:
    """Return what stages with the current settings and inputs cost; stages without a time are left out.

    root: the home directory of the stages' processes; cached: the stages that DVC took from its cache in this run, None
    if that is not known. Returns None if no stage has a time.
    """
    found = {stage: _of_result(attempts_of(stage, root)) for stage in stages}
    rows = [
        _stage_cost(stage, attempts, None if cached is None else stage in cached)
        for stage, attempts in found.items()
        if attempts
    ]
    return RunCost(stages=tuple(rows)) if rows else None


def recorded_cost(manifest: Mapping[str, Any]) -> RunCost | None:
    """Return the cost in a release's manifest; None if it has none in this form, as older releases."""
    try:
        return RunCost.model_validate(manifest.get("cost"))
    except ValidationError:
        return None


def money_of(attempts: Iterable[Attempt]) -> Money:
    """Return what attempts cost, by currency; those without a price cost nothing."""
    found: Money = {}
    for one in attempts:
        if one.price is not None:
            amount = one.price * one.device_seconds / SECONDS_PER_HOUR
            found[one.currency] = found.get(one.currency, 0.0) + amount
    return found


def money_text(money: Mapping[str, float]) -> str:
    """Write money in words: `3.20 USD`, or amounts of several currencies."""
    return " + ".join(
        f"{amount:.2f} {currency}" if amount >= _CENT or not amount else f"{amount:.2g} {currency}"
        for currency, amount in sorted(money.items())
    )


def total_text(total: Total) -> str:
    """Write a sum in words, for one line."""
    money = f", {money_text(total.money)}" if total.money else ""
    partly = " for the part that had a price" if total.money and not total.priced else ""
    return f"{total.device_hours:.3f} device hours{money}{partly}"


def cost_text(cost: RunCost) -> str:
    """Write the cost of a run in one line."""
    text = f"{total_text(cost.total)} in {len(cost.stages)} stages"
    if cost.this_run is None or not cost.cached:
        return text
    return (
        f"{text}; this run {total_text(cost.this_run)}, the rest is of the cache ({', '.join(cost.cached)})"
    )


def _of_result(attempts: Sequence[Attempt]) -> Sequence[Attempt]:
    """Return the attempts that led to the newest result: up to the last that succeeded."""
    last = max((number for number, one in enumerate(attempts) if one.completed), default=-1)
    return newest_attempts(attempts[: last + 1])


def _stage_cost(stage: str, attempts: Sequence[Attempt], cached: bool | None) -> StageCost:
    seconds = sum(one.seconds for one in attempts)
    device_seconds = sum(one.device_seconds for one in attempts)
    money = {currency: round(amount, _DIGITS) for currency, amount in money_of(attempts).items()}
    return StageCost(
        stage=stage,
        wall_hours=round(seconds / SECONDS_PER_HOUR, _DIGITS),
        device_hours=round(device_seconds / SECONDS_PER_HOUR, _DIGITS),
        devices=attempts[-1].devices,
        kind=attempts[-1].kind,
        attempts=len(attempts),
        money=money,
        priced=all(one.price is not None for one in attempts),
        cached=cached,
    )


def _sum(stages: Sequence[StageCost]) -> Total:
    money: Money = {}
    for stage in stages:
        for currency, amount in stage.money.items():
            money[currency] = round(money.get(currency, 0.0) + amount, _DIGITS)
    return Total(
        wall_hours=round(sum(stage.wall_hours for stage in stages), _DIGITS),
        device_hours=round(sum(stage.device_hours for stage in stages), _DIGITS),
        money=money,
        priced=all(stage.priced for stage in stages),
    )
