"""Compare the results of a run with those of a release: same bytes, figures within bounds, or what differs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Outcome = Literal["same bytes", "within bounds", "different"]

# Bounds for another kind of machine, whose sums are rounded otherwise. A rule's figure must lie in the interval that the
# release gives for it; a format's output error may differ by this share, its PSNR by this many dB.
ERROR_SHARE: Final = 0.10
PSNR_DB: Final = 3.0
# what decides how sums are rounded, of a manifest's `environment`
KIND: Final = ("python", "processor", "gpus", "libraries")


@dataclass(frozen=True)
class Results:
    """The results of a run.

    outs: DVC's digest by output of a stage; files: SHA-256 by name in the release; decision, proof: the content of the
    JSON files (proof: None if the gate refused); kind: the machine, as in a manifest's `environment`.
    """

    outs: Mapping[str, str]
    files: Mapping[str, str]
    decision: Mapping[str, Any]
    proof: Mapping[str, Any] | None
    kind: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure of both runs, and whether it agrees within its bound, which is given in words."""

    name: str
    released: float | None
    again: float | None
    bound: str
    agrees: bool


@dataclass(frozen=True)
class Comparison:
    """The outcome, why, the outputs and files with other bytes, and the figures of both runs."""

    outcome: Outcome
    reason: str
    other_bytes: tuple[str, ...]
    figures: tuple[Figure, ...]


def compare(released: Results, again: Results, *, deterministic: bool) -> Comparison:
    """Compare two runs of the same revision, settings and data.

    deterministic: whether the same kind of machine gives the same bytes, as CPUs do. Then figures within the bounds are
    only enough on another kind of machine.
    """
    outs = _other(released.outs, again.outs)
    files = _other(released.files, again.files)
    if not outs and not files:
        what = f"{len(again.outs)} outputs of the stages and {len(again.files)} files of the release"
        return Comparison("same bytes", what, (), ())
    other = (*outs, *files)
    figures = tuple(_figures(released, again))
    different = Comparison("different", "", other, figures)
    if files and not outs:
        return _because(
            different,
            f"the stages give what the release's dvc.lock records, but its {files[0]} is another file",
        )
    if released.decision["verdict"] != again.decision["verdict"]:
        return _because(
            different,
            f"the release says {released.decision['verdict']}, this run {again.decision['verdict']}: "
            f"{again.decision['reason']}",
        )
    if odd := [figure.name for figure in figures if not figure.agrees]:
        return _because(different, f"{len(odd)} of {len(figures)} figures are out of bounds, first {odd[0]}")
    changed = [key for key in KIND if released.kind.get(key) != again.kind.get(key)]
    if deterministic and not changed:
        return _because(
            different,
            "this machine is of the same kind as the one that published, so the same bytes were expected",
        )
    why = f"another {', '.join(changed)}" if changed else "a GPU, whose sums are not in a fixed order"
    return Comparison("within bounds", f"all {len(figures)} figures agree; {why}", other, figures)


def _because(comparison: Comparison, reason: str) -> Comparison:
    return Comparison(comparison.outcome, reason, comparison.other_bytes, comparison.figures)


def _other(one: Mapping[str, str], two: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name))


def _figures(released: Results, again: Results) -> Iterator[Figure]:
    rules = {rule["name"]: rule for rule in again.decision["rules"]}
    for rule in released.decision["rules"]:
        yield _rule_figure(rule, rules.get(rule["name"], {}))
    old, new = released.proof or {"formats": {}}, again.proof or {"formats": {}}
    for name in sorted(old["formats"].keys() | new["formats"].keys()):
        one, two = (formats["formats"].get(name, {}) for formats in (old, new))
        yield _near(
            f"{name} output error", one, two, "relative_error", share=ERROR_SHARE, bound=f"±{ERROR_SHARE:.0%}"
        )
        yield _near(f"{name} PSNR", one, two, "psnr", distance=PSNR_DB, bound=f"±{PSNR_DB:g} dB")


def _rule_figure(released: Mapping[str, Any], again: Mapping[str, Any]) -> Figure:
    value, low, high = (released.get(key) for key in ("value", "low", "high"))
    now = again.get("value")
    same_verdict = released["verdict"] == again.get("verdict")
    if value is None or low is None or high is None or now is None:
        return Figure(released["name"], value, now, "measured by both", same_verdict and value == now)
    bound = f"{low:.3f} to {high:.3f}"
    return Figure(released["name"], value, now, bound, same_verdict and low <= now <= high)


def _near(
    name: str,
    released: Mapping[str, Any],
    again: Mapping[str, Any],
    key: str,
    *,
    bound: str,
    share: float = 0.0,
    distance: float = 0.0,
) -> Figure:
    one, two = released.get(key), again.get(key)
    if one is None or two is None:
        return Figure(name, one, two, "measured by both", bool(released) and bool(again) and one == two)
    return Figure(name, one, two, bound, abs(one - two) <= max(distance, share * abs(one)))
