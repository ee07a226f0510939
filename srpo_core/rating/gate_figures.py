"""What people found about the model that the gate judges: figures of its rules, and how well automatic scores predicted them."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from srpo_core.artifacts import ALIGNED, BASE, CHAMPION
from srpo_core.config import GateRule, GateSettings, ModelSettings
from srpo_core.errors import ArtifactError, GateError
from srpo_core.gates.people import EXCELLENT, WIN_RATE, people_rules
from srpo_core.gates.rules import Measurement, whole_confidences
from srpo_core.rating.answers import Refused
from srpo_core.rating.predictions import predictions
from srpo_core.rating.records import LEVELS, PAIRED, PLAIN, Rating
from srpo_core.rating.results import ALL_STYLES, Figure, Progress, summarize, widening
from srpo_core.rating.stored import About, path_of, read_about, read_ratings
from srpo_core.rating.weights import weights_digest

DIGITS: Final = 12

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rated:
    """A finished task in which the judged model was rated; the model is called `ALIGNED` in the answers."""

    task: str
    about: About
    ratings: list[Rating]

    @property
    def progress(self) -> Progress:
        """How the task ended. A task that was closed for good ended, too: nobody had seen results."""
        complete = self.about.raters if self.about.closed else self.about.complete
        return Progress(self.about.items, self.about.raters, complete, self.about.looked_early)


@dataclass(frozen=True)
class People:
    """What people found.

    figures: of the gate's rules about people, by name. summary: for decision.json; empty without a finished task.
    """

    figures: dict[str, Measurement] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def version_of(path: Path) -> str:
    """Return TASK:DIGEST of the file of a finished task, an entry of `gate.ratings`."""
    return f"{path.stem}:{hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS]}"


def people_found(  # what the figures depend on
    gate: GateSettings,
    *,
    champion: str | None,
    model: ModelSettings,
    checkpoint: Path,
    figures: Any,
    root: Path = Path(),
) -> People:
    """Measure the gate's rules about people's ratings, and compare people with the automatic scores image by image.

    figures: the rows of the evaluation (a `pyarrow.Table`). root: below it are `checkpoint` and the files of `gate.ratings`. A rule
    without a finished task of this checkpoint has a fault, which says how to collect ratings.

    Raises:
        ArtifactError: a file of `gate.ratings` has other bytes than its digest says.
        DataError: a file is missing or damaged.
    """
    rules = people_rules(gate.rules, champion)
    if not rules and not gate.ratings:
        return People()
    digest = weights_digest(_below(root, model), root / checkpoint)
    rated = [one for one in (_read(root, entry, digest) for entry in gate.ratings) if one is not None]
    confidence = whole_confidences(gate.rules, gate)
    measured = {
        name: _measure(rule, rated, champion, confidence[name], checkpoint) for name, rule in rules.items()
    }
    return People(measured, _summary(rated, champion, gate.confidence, figures))


def require_ratings(gate: GateSettings, people: People) -> None:
    """Raise `GateError`, exit code 3, if a rule of another severity than warn has no finished ratings."""
    for name, one in people.figures.items():
        if one.fault and gate.rules[name].severity != "warn":
            raise GateError(f"gate.rules.{name}: {one.fault}")


def _below(root: Path, model: ModelSettings) -> ModelSettings:
    path = Path(model.path)
    return model if path.is_absolute() else model.model_copy(update={"path": str(root / path)})


def _read(root: Path, entry: str, digest: str) -> Rated | None:
    """Read a task of `gate.ratings`; None if other weights than those of the digest were rated."""
    task = entry.partition(":")[0]
    path = root / path_of(task)
    about = read_about(path)
    if version_of(path) != entry:
        raise ArtifactError(
            f"gate.ratings has {entry}, but {path} is {version_of(path)}: set gate.ratings to that, or fetch the other version"
        )
    own = next((name for name, one in about.models.items() if one == digest), None)
    if own is None:
        return None
    names, refused = {own: ALIGNED}, Refused()
    ratings = [
        replace(one, first=names.get(one.first, one.first), second=names.get(one.second, one.second))
        for one in read_ratings([path], refused=refused)
    ]
    if refused.entries:
        log.warning("%s: %s", path, refused.summary())
    return Rated(task, about, ratings)


def _measure(
    rule: GateRule, rated: Sequence[Rated], champion: str | None, confidence: float, checkpoint: Path
) -> Measurement:
    protocol = PAIRED if rule.metric == WIN_RATE else LEVELS
    other = champion if rule.against == CHAMPION else BASE
    nothing = float("nan")
    for one in rated:
        if not one.ratings or one.ratings[0].protocol != protocol or other not in one.about.models:
            continue
        if not one.progress.ended:
            break
        found = _figure(rule, one, str(other), confidence)
        few = math.isnan(found.low)
        why = f"{found.raters} raters and {found.prompts} prompts are too few for an interval" if few else ""
        return Measurement(found.value, found.low, found.high, confidence, np.array([found.value]), why)
    against = "production" if rule.against == CHAMPION else BASE
    fault = (
        f"no finished ratings compare this checkpoint with the {rule.against}: collect them with 'srpo rate {checkpoint} "
        f"--against {against} --protocol {protocol}', end with 'srpo rate finish TASK', and set gate.ratings as it prints"
    )
    return Measurement(nothing, nothing, nothing, confidence, np.array([nothing]), fault)


def _figure(rule: GateRule, rated: Rated, other: str, confidence: float) -> Figure:
    results = summarize(
        rated.ratings,
        confidence=confidence,
        widened=widening(rated.ratings, rated.progress, confidence=confidence),
        models=[ALIGNED, other],
    )
    nothing = float("nan")
    none = Figure(nothing, nothing, nothing, 0, 0, 0)
    if rule.metric == WIN_RATE:
        wins = [one for one in results.win_rates if one.style == ALL_STYLES]
        return next((one.figure for one in wins if (one.model, one.other) == (ALIGNED, other)), none)
    dimension = rule.metric.removeprefix(EXCELLENT)
    rates = [
        one
        for one in results.excellent
        if (one.dimension, one.style, one.other) == (dimension, ALL_STYLES, other)
    ]
    return next((one.figure for one in rates if one.model == ALIGNED), none)


def _summary(rated: Sequence[Rated], champion: str | None, confidence: float, figures: Any) -> dict[str, Any]:
    if not rated:
        return {}
    tasks = [
        {
            "task": one.task,
            "protocol": one.ratings[0].protocol,
            "raters": len({answer.rater for answer in one.ratings}),
            "answers": sum(answer.kind == PLAIN for answer in one.ratings),
            "looked_early": one.about.looked_early,
            "closed": one.about.closed,
        }
        for one in rated
        if one.ratings
    ]
    paired = [answer for one in rated for answer in one.ratings if answer.protocol == PAIRED]
    predicted = {
        against: predictions(paired, figures, other=against, named=named, confidence=confidence)
        for against, named in ((BASE, BASE), (CHAMPION, champion))
        if named is not None
    }
    return {"tasks": tasks, "predicted": {key: value for key, value in predicted.items() if value}}
