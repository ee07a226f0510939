"""What the page of a store shows, as values: releases, moves of production, models. All texts may be untrusted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class RuleFigure:
    """The figure of one gate rule for one release.

    value, low, high: None if it was not measured; allowed: where the allowed range begins or ends, one or two figures;
    state: `good`, `bad`, `warn`, or empty if the rule did not apply. label: metric and comparison; limit: the allowed
    range in words.
    """

    value: float | None
    low: float | None
    high: float | None
    allowed: tuple[float, ...]
    state: str
    label: str
    limit: str


@dataclass(frozen=True)
class FormatFigure:
    """One format of a release; gain_kept: share of the gain over the base that its images keep, or None."""

    name: str
    megabytes: float
    gain_kept: float | None
    psnr: float | None


@dataclass(frozen=True)
class Cost:
    """What the stages of a release took; device_hours: by kind of device; price: of all of it, as text. Both may be empty."""

    device_hours: Mapping[str, float] = field(default_factory=dict)
    price: str = ""


@dataclass(frozen=True)
class Lineage:
    """Where a release comes from, as short texts; `UNKNOWN` where its manifest does not say it.

    changed: whether the checkout had uncommitted changes; champion: the version that it was compared with, or None.
    """

    code: str = UNKNOWN
    changed: bool = False
    data: str = UNKNOWN
    settings: str = UNKNOWN
    base: str = UNKNOWN
    reward: str = UNKNOWN
    champion: str | None = None

    def parts(self) -> tuple[tuple[str, str], ...]:
        """Return name and value of each origin, in the order of the diagram."""
        code = f"{self.code} + changes" if self.changed else self.code
        return (
            ("code", code),
            ("data", self.data),
            ("settings", self.settings),
            ("base", self.base),
            ("reward", self.reward),
        )


@dataclass(frozen=True)
class ReleaseRow:
    """One version. With a fault, only version and aliases are known.

    rules: by name, in the gate's order; left_out: (format, reason); links: from the page to files of the release, by
    name; image: before and after as a data URI; image_fault: why there is none although the page should have it.
    """

    version: str
    fault: str = ""
    created_at: str = ""
    passed: bool = False
    reason: str = ""
    aliases: tuple[str, ...] = ()
    rules: Mapping[str, RuleFigure] = field(default_factory=dict)
    formats: tuple[FormatFigure, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    cost: Cost = field(default_factory=Cost)
    links: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    image_fault: str = ""


@dataclass(frozen=True)
class MoveRow:
    """One step of an alias; kind: `promoted`, `rolled back` or `override`, or `rejected`, which is about `after`."""

    when: str
    before: str
    after: str
    who: str
    why: str
    kind: str


@dataclass(frozen=True)
class ModelPart:
    """The releases of one model, newest first.

    production: the version in production, or None; moves: of production, newest first; rejections: of candidates, newest
    first; faults: aliases that cannot be read.
    """

    name: str
    rows: Sequence[ReleaseRow]
    production: str | None = None
    moves: Sequence[MoveRow] = ()
    faults: Sequence[str] = ()
    rejections: Sequence[MoveRow] = ()
