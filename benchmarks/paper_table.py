"""The figures of the SRPO paper's table 1 (arXiv 2509.06942) beside those of the same methods on the tiny family.

The paper: FLUX.1-dev, 3,200 prompts of HPDv2. `SGP-HPS` is its relative reward, HPSv2.1 its plain reward, GenEval follows
the prompt's subject, and `rated excellent` is the share of images that people rate excellent overall, in per cent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from compare_curves import STYLE, Curve, change, reference_of


@dataclass(frozen=True)
class Published:
    """A row of the paper's table; gpu_hours: of an H20, None for the base."""

    sgp: float
    hps: float
    gen_eval: float
    excellent: float
    gpu_hours: float | None


BASE: Final = Published(0.463, 0.289, 0.678, 5.3, None)
PAPER: Final = {
    "ReFL": Published(0.470, 0.298, 0.656, 3.1, 16),
    "DRaFT-LV": Published(0.458, 0.296, 0.636, 4.7, 24),
    "DanceGRPO": Published(0.414, 0.297, 0.585, 3.7, 480),
    "Direct-Align": Published(0.448, 0.294, 0.668, 3.9, 16),
    "SRPO online": Published(0.505, 0.289, 0.665, 29.4, 5.3),
}
TITLES: Final = (
    "method",
    "here: style",
    "relative reward",
    "plain reward",
    "subject, top-1",
    "CPU s of a step, SRPO = 1",
    "paper: rated excellent, overall",
    "SGP-HPS",
    "HPSv2.1",
    "GenEval",
    "H20 hours, SRPO = 1",
)


def table_beside_paper(curves: Sequence[Curve], step: int) -> list[Sequence[str]]:
    """Return titles and rows: changes from the base after `step` steps here, and in the paper."""
    reference, ours = reference_of(curves), PAPER[reference_of(curves).method]
    rows: list[Sequence[str]] = []
    for curve in curves:
        found, theirs = curve.at_step(step), PAPER.get(curve.method)
        if found is None or theirs is None:
            continue
        names = (STYLE, "relative_reward", "reward", "judge_top1")
        changes = [f"{change(name, found, curve.base).value:+.3f}" for name in names]
        cost = f"{curve.seconds_at(step) / reference.seconds_at(step):.2f}"
        assert theirs.gpu_hours is not None and ours.gpu_hours is not None, "only the base has none"
        published = [
            f"{theirs.excellent - BASE.excellent:+.1f}",
            f"{theirs.sgp - BASE.sgp:+.3f}",
            f"{theirs.hps - BASE.hps:+.3f}",
            f"{theirs.gen_eval - BASE.gen_eval:+.3f}",
            f"{theirs.gpu_hours / ours.gpu_hours:.1f}",
        ]
        rows.append([curve.method, *changes, cost, *published])
    return [TITLES, *rows]
