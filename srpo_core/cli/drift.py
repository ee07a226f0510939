"""What `srpo watch` measures: how far the newest data are from those that the release in production was trained on."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from srpo_core.config import IngestSettings, Settings, WatchSettings, patched
from srpo_core.data.drift import Agreement, Moved, agreement_shift, style_shift
from srpo_core.data.prompt_styles import ComparedStyles, StyledPrompts, compare_styles, read_styles
from srpo_core.data.sources import require_source, source_format
from srpo_core.errors import ConfigError, DataError
from srpo_core.prompts import normal_form
from srpo_core.release.training_data import TrainingData
from srpo_core.report.drift_chart import Share, style_shares
from srpo_core.report.text import visible
from srpo_core.workspace.data_settings import noted_ingest
from srpo_core.workspace.data_view import known_tags, open_version

if TYPE_CHECKING:
    from srpo_core.cli.pair_scores import PairScorer

PROMPTS: Final = "prompts"  # the format of a file of prompts
STYLES: Final = "styles"
AGREEMENT: Final = "agreement"
_DIGITS: Final = 12


@dataclass(frozen=True)
class Finding:
    """One figure: how far it moved, or None with the reason why it is not compared.

    name: styles or agreement. limit: of the settings. before, after, note: in words.
    """

    name: str
    moved: Moved | None
    limit: float
    before: str = ""
    after: str = ""
    note: str = ""

    @property
    def is_beyond(self) -> bool:
        """Whether it is shown that the figure moved beyond the limit."""
        return self.moved is not None and self.moved.beyond(self.limit)


@dataclass(frozen=True)
class Drift:
    """What moved between the data of production and newer ones.

    newer: tag of a data version, or path of a file. identity: of the newer data; the same prompts have the same.
    styles, agreement: for the chart, if they were compared.
    """

    production: TrainingData
    newer: str
    identity: str
    findings: tuple[Finding, ...]
    styles: ComparedStyles | None = None
    agreement: tuple[Share, Share] | None = None

    @property
    def is_beyond(self) -> bool:
        """Whether one of the figures moved beyond its limit."""
        return any(one.is_beyond for one in self.findings)

    @property
    def line(self) -> str:
        """The outcome in one line."""
        state = "drift" if self.is_beyond else "no drift"
        return f"{state}: {'; '.join(map(_in_words, self.findings))}"


@dataclass(frozen=True)
class _Data:
    """Data that can be read: their settings of ingest, and what ingest found, by rule."""

    name: str
    ingest: IngestSettings
    findings: Mapping[str, Mapping[str, Any]] | None

    @cached_property
    def styled(self) -> StyledPrompts:
        """The prompts and their styles."""
        return read_styles(self.ingest, self.findings)


def newest_version(checkout: Path, production: TrainingData) -> str:
    """Return the tag of the newest version of the data set that production was trained on."""
    return next(tag for tag in known_tags(checkout) if tag.startswith(f"data/{production.name}/"))


def measure_drift(
    settings: Settings,
    production: TrainingData,
    newer: str,
    *,
    prompts: Mapping[str, Any] | None = None,
) -> Drift:
    """Compare newer data with those of production by the settings `watch`, and the rewards of the settings.

    newer: the tag of a data version; or, with `prompts`, the path of a file of prompts. prompts: settings of ingest with
    which the file is read, for instance its columns.

    Raises:
        ConfigError: there is no such version, or the settings compare nothing.
        DataError: a file cannot be read, or there is nothing that can be compared.
        StoreError: neither DVC's cache nor the remote has all of a version.
    """
    watch = settings.watch
    asked = [limit for limit in (watch.styles, watch.agreement) if limit is not None]
    if not asked:
        raise ConfigError(
            "watch.styles and watch.agreement are both null: set one of them to compare the data"
        )
    confidence = 1 - (1 - watch.confidence) / len(asked)
    with ExitStack() as stack:
        old = stack.enter_context(_version(settings, production.tag))
        new = (
            stack.enter_context(_version(settings, newer))
            if prompts is None
            else _file(settings, newer, prompts)
        )
        identity = newer if prompts is None else _digest(new.styled.prompts)
        styles = _styles(watch, old, new, confidence)
        agreement = _agreement(settings, old, new, confidence)
    findings = tuple(one for one in (styles[0], agreement[0]) if one is not None)
    if all(one.moved is None for one in findings):
        why = "; ".join(f"{one.name}: {one.note}" for one in findings)
        raise DataError(f"nothing of {newer} can be compared with {production.tag}: {why}")
    return Drift(production, newer, identity, findings, styles[1], agreement[1])


def drift_rows(drift: Drift) -> list[dict[str, Any]]:
    """Return the findings and the shares of the styles as rows of a table."""
    rows = [
        {
            "figure": one.name,
            "production": one.before,
            "new": one.after,
            "moved by": "" if one.moved is None else f"{one.moved.value:+.3f}",
            "shown": "" if one.moved is None else f"{one.moved.low:+.3f} … {one.moved.high:+.3f}",
            "limit": f"{one.limit:g}",
            "outcome": "not compared" if one.moved is None else "drift" if one.is_beyond else "no drift",
            "note": visible(one.note),
        }
        for one in drift.findings
    ]
    if drift.styles is None:
        return rows
    shares = style_shares(drift.styles.before, drift.styles.after)
    return rows + [
        {
            "figure": f"style {visible(name)}",
            "production": f"{old:.1%}",
            "new": f"{new:.1%}",
            "moved by": f"{new - old:+.3f}",
        }
        for name, old, new in shares
    ]


def _styles(
    watch: WatchSettings, old: _Data, new: _Data, confidence: float
) -> tuple[Finding | None, ComparedStyles | None]:
    if watch.styles is None:
        return None, None
    compared = compare_styles(old.styled, new.styled)
    if isinstance(compared, str):
        return Finding(STYLES, None, watch.styles, note=compared), None
    note = (
        "as the data name them"
        if compared.accuracy is None
        else f"assigned by words, which is right for {compared.accuracy:.0%} of the prompts that have one"
    )
    before, after = (f"{sum(one.values()):,} prompts" for one in (compared.before, compared.after))
    moved = style_shift(compared.before, compared.after, confidence)
    return Finding(STYLES, moved, watch.styles, before, after, note), compared


def _agreement(
    settings: Settings, old: _Data, new: _Data, confidence: float
) -> tuple[Finding | None, tuple[Share, Share] | None]:
    limit = settings.watch.agreement
    if limit is None:
        return None, None
    without = [one for one in (old, new) if not source_format(one.ingest.format).has_pairs]
    if without:
        note = f"{without[0].name} has no pairs of images that people compared"
        return Finding(AGREEMENT, None, limit, note=note), None
    from srpo_core.cli.pair_scores import PairScorer

    scorer = PairScorer(settings)
    before, after = (_agreed(scorer, one) for one in (old, new))
    tail = (1 - confidence) / 2
    names = " + ".join(one.scorer for one in settings.rewards)
    finding = Finding(
        AGREEMENT,
        agreement_shift(before, after, confidence),
        limit,
        before=f"{before.share:.1%} of {len(before.agreed):,} pairs",
        after=f"{after.share:.1%} of {len(after.agreed):,} pairs",
        note=f"of the reward {names} with what people preferred",
    )
    return finding, ((before.share, *before.bounds(tail)), (after.share, *after.bounds(tail)))


def _agreed(scorer: "PairScorer", data: _Data) -> Agreement:
    from srpo_core.stages.check_reward import MIX

    pairs, agreed = scorer.score(data.name, data.ingest, data.findings)
    return Agreement(agreed[MIX], [normal_form(pair.prompt) for pair in pairs])


@contextmanager
def _version(settings: Settings, tag: str) -> Iterator[_Data]:
    with open_version(Path.cwd(), tag) as version:
        yield _Data(tag, noted_ingest(version.path, settings.ingest, version.ingest), version.findings)


def _file(settings: Settings, path: str, given: Mapping[str, Any]) -> _Data:
    """Return a file of prompts as data that can be read. given: settings of ingest in which it differs."""
    where = require_source(path, PROMPTS)
    whole = patched(settings.ingest.model_dump(), {"columns": {}, **given})
    ingest = IngestSettings.model_validate({**whole, "format": PROMPTS, "source": str(where)})
    return _Data(path, ingest, None)


def _digest(prompts: Collection[str]) -> str:
    return sha256("\n".join(sorted(prompts)).encode()).hexdigest()[:_DIGITS]


def _in_words(one: Finding) -> str:
    if one.moved is None:
        return f"{one.name} not compared ({one.note})"
    value = one.moved.value
    if one.name == STYLES:
        return f"{one.name} moved by {value:.3f} (at least {one.moved.low:.3f} is shown, limit {one.limit:g})"
    bounds = f"{one.moved.low:+.3f} … {one.moved.high:+.3f}"
    return f"{one.name} moved by {value:+.3f} ({bounds}, limit ±{one.limit:g})"
