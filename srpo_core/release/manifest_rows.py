"""Read manifests and aliases, which may be damaged or another program's, into the rows of the store's page."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from srpo_core.gates.comparisons import COMPARISONS
from srpo_core.quantizers import LORA_FORMAT
from srpo_core.release.references import REJECTED
from srpo_core.report.store_chart import shown_figure
from srpo_core.report.store_rows import (
    UNKNOWN,
    Cost,
    FormatFigure,
    Lineage,
    MoveRow,
    ReleaseRow,
    RuleFigure,
)
from srpo_core.runtime.costs import RunCost, money_text, recorded_cost

LETTERS: Final = 600  # of a text on the page
DIGITS: Final = 12  # of a digest
LARGEST: Final = 1e12  # figures beyond it are not ours, and no chart can show them
_STATES: Final = {"holds": "good", "warns": "warn", "refuses": "bad"}


def _shortened(text: str) -> str:
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "…"


Text = Annotated[str, AfterValidator(_shortened)]
Figure = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class _Part(BaseModel):
    """A part of a manifest: other keys are ignored, and types are not converted."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Rule(_Part):
    name: Text
    metric: Text = ""
    against: Text = ""
    compare: Text = ""
    side: Text = ""
    margin: Figure | None = None
    verdict: Text = ""
    value: Figure | None = None
    low: Figure | None = None
    high: Figure | None = None


class _Decision(_Part):
    passed: bool
    reason: Text = ""
    rules: list[_Rule] = Field(default=[], max_length=500)


class _Format(_Part):
    gain_kept: Figure | None = None
    psnr: Figure | None = None


class _LeftOut(_Part):
    refused: list[Text] = Field(default=[], max_length=50)


class _Proof(_Part):
    formats: dict[Text, _Format] = Field(default={}, max_length=100)
    refused: dict[Text, _LeftOut] = Field(default={}, max_length=100)


class _Git(_Part):
    revision: Text | None = None
    diff: str | None = None


class _Evaluation(_Part):
    champion: Text | None = None


class _Origin(_Part):
    """A file or directory: its name, and the MD5 that DVC recorded, or None if it tracks it nowhere."""

    name: Text
    md5: Text | None = None


class _Reward(_Origin):
    weight: Figure = 1.0


class _Lineage(_Part):
    data: _Origin | None = None
    base: _Origin | None = None
    rewards: list[_Reward] = Field(default=[], max_length=50)


class _File(_Part):
    sha256: Text
    bytes: int


class _Manifest(_Part):
    version: Text
    created_at: Text
    files: dict[str, _File] = Field(max_length=100_000)
    formats: dict[Text, list[str]] = Field(max_length=100)
    decision: _Decision
    proof: _Proof = _Proof()
    git: _Git = _Git()
    evaluation: _Evaluation = _Evaluation()
    lineage: _Lineage = _Lineage()


class _Step(_Part):
    when: Text
    who: Text
    why: Text = ""
    before: Text | None = Field(default=None, alias="from")
    after: Text | None = Field(default=None, alias="to")
    rollback: bool = False
    rejected: Text | None = None


class _Alias(_Part):
    version: Text | None
    history: list[_Step] = Field(max_length=100_000)


def release_row(version: str, manifest: Mapping[str, Any], aliases: tuple[str, ...]) -> ReleaseRow:
    """Return the row of a release; one with a fault if its manifest is not one that a release has."""
    try:
        read = _Manifest.model_validate(manifest)
    except ValidationError as error:
        fault = f"its manifest is not one of srpo ({first_fault(error)}): restore it from a backup"
        return ReleaseRow(version, fault, aliases=aliases)
    if read.version != version:
        return ReleaseRow(version, f"its manifest is of version {read.version!r}", aliases=aliases)
    return ReleaseRow(
        version,
        created_at=read.created_at,
        passed=read.decision.passed,
        reason=read.decision.reason,
        aliases=aliases,
        rules={rule.name: _rule(rule) for rule in read.decision.rules},
        formats=_formats(read),
        left_out=tuple((name, "; ".join(one.refused)) for name, one in read.proof.refused.items()),
        lineage=_lineage(read),
        cost=_cost(recorded_cost(manifest)),
    )


def production_of(value: Mapping[str, Any]) -> tuple[str | None, list[MoveRow]]:
    """Return the version that an alias file points to, and its moves, newest first.

    Raises:
        ValueError: it is not an alias file of this project; says where.
    """
    try:
        alias = _Alias.model_validate(value)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None
    return alias.version, [_move(step) for step in reversed(alias.history)]


def first_fault(error: ValidationError) -> str:
    """Describe the first fault that pydantic found, in a few words."""
    fault = error.errors()[0]
    return f"{'.'.join(str(step)[:80] for step in fault['loc'])}: {fault['msg']}"


def _move(step: _Step) -> MoveRow:
    """Return a step as a row of the page; `after` of a rejection is the version that was rejected."""
    if step.rejected is not None:
        return MoveRow(step.when, "", step.rejected, step.who, step.why, REJECTED)
    kind = "rolled back" if step.rollback else "override" if step.why.startswith("override:") else "promoted"
    return MoveRow(step.when, step.before or "", step.after or "", step.who, step.why, kind)


def _rule(rule: _Rule) -> RuleFigure:
    comparison = COMPARISONS.get(rule.compare)
    allowed: tuple[float, ...] = ()
    limit = "–"
    if rule.margin is not None and rule.side in ("at_least", "at_most"):
        allowed, limit = (
            (rule.margin,),
            f"{'≥' if rule.side == 'at_least' else '≤'} {shown_figure(rule.margin)}",
        )
    elif (
        rule.margin is not None
        and rule.side == "within"
        and comparison
        and not math.isnan(comparison.neutral)
    ):
        allowed = (comparison.neutral - rule.margin, comparison.neutral + rule.margin)
        limit = f"{shown_figure(allowed[0])} … {shown_figure(allowed[1])}"
    against = "" if rule.against in ("", "absolute") else f" to the {rule.against}"
    label = f"{rule.metric}, {rule.compare.replace('_', ' ')}{against}".strip(", ")
    return RuleFigure(rule.value, rule.low, rule.high, allowed, _STATES.get(rule.verdict, ""), label, limit)


def _formats(read: _Manifest) -> tuple[FormatFigure, ...]:
    def figure(name: str, files: list[str]) -> FormatFigure:
        measured = read.proof.formats.get(name, _Format())
        size = sum(read.files[file].bytes for file in files if file in read.files) / 1e6
        return FormatFigure(name, size, measured.gain_kept, measured.psnr)

    return tuple(figure(name, files) for name, files in read.formats.items() if name != LORA_FORMAT)


def _lineage(read: _Manifest) -> Lineage:
    settings = read.files.get("params.yaml")
    weights = read.lineage.rewards
    return Lineage(
        code=read.git.revision[:DIGITS] if read.git.revision else "no git checkout",
        changed=bool(read.git.diff),
        data=_origin(read.lineage.data),
        settings=UNKNOWN if settings is None else settings.sha256[:DIGITS],
        base=_origin(read.lineage.base),
        reward=", ".join(
            f"{_origin(one)}{f' × {one.weight:g}' if len(weights) > 1 else ''}" for one in weights
        )
        or UNKNOWN,
        champion=read.evaluation.champion,
    )


def _origin(origin: _Origin | None) -> str:
    if origin is None:
        return UNKNOWN
    return f"{origin.name} {origin.md5[:DIGITS]}" if origin.md5 else origin.name


def _cost(cost: RunCost | None) -> Cost:
    """Return what all stages cost when they ran; nothing if the manifest does not record it in this form."""
    if cost is None:
        return Cost()
    hours: dict[str, float] = {}
    for stage in cost.stages:
        hours[stage.kind] = hours.get(stage.kind, 0.0) + stage.device_hours
    partly = "" if cost.total.priced else " for the part that had a price"
    return Cost(hours, f"{money_text(cost.total.money)}{partly}" if cost.total.money else "")
