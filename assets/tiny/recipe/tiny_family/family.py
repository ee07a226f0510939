"""The last stage: put the trained parts into ../family with their cards, and write the table of figures."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tiny_family.cards import write_cards
from tiny_family.figures import read_figures
from tiny_family.pictures import STYLES, read_subjects
from tiny_family.training import forget

FAMILY: Final = Path("../family")
GRIDS: Final = ("base_grid.png", "styles_grid.png")  # of the README
PARTS: Final[Mapping[str, str]] = {
    "family_base": "base",
    "reward": "reward",
    "judge_a": "judge_a",
    "judge_b": "judge_b",
}
STAGES: Final = ("vae", "judge_a", "judge_b", "reward", "base", "distill")
LARGEST: Final = 10_000_000  # bytes; what a repository should not exceed in one file

log = logging.getLogger(__name__)


def install() -> None:
    """Replace the parts of ../family, one directory at a time, and the README's grids."""
    sources = [Path("out") / source for source in PARTS]
    files = [file for source in sources for file in source.rglob("*") if file.is_file()]
    too_large = [file for file in files if file.stat().st_size > LARGEST]
    if too_large:
        raise SystemExit(
            f"larger than {LARGEST} bytes: {', '.join(map(str, too_large))}: make the model smaller in params.yaml"
        )
    for source, name in PARTS.items():
        fresh, target = FAMILY / f"{name}.fresh", FAMILY / name
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(Path("out") / source, fresh)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    text = json.dumps({**read_subjects(), "styles": list(STYLES)}, ensure_ascii=False, indent=0)
    (FAMILY / "subjects.json").write_text(f"{text}\n", encoding="utf-8")
    for grid in GRIDS:
        shutil.copy(Path("out") / grid, FAMILY.parent)


def table() -> str:
    """One row per stage: its CPU time and its figures; then what both judges see in drawn pictures."""
    lines, total = ["| stage | CPU minutes | figures |", "|---|---|---|"], 0.0
    for stage in STAGES:
        figures = read_figures(stage)
        minutes = figures.pop("cpu_seconds") / 60
        total += minutes
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        lines.append(f"| {stage} | {minutes:.1f} | {told} |")
    measured = read_figures("measure")
    told = ", ".join(f"{name} {value:.3f}" for name, value in measured.items() if isinstance(value, float))
    lines.append(f"| measure | | {measured['pictures']} pictures: {told} |")
    for kind in ("drawn", "original"):
        told = ", ".join(f"{pair} {value:.3f}" for pair, value in measured[f"distance_{kind}"].items())
        lines.append(f"| | | distances of styles, {kind}: {told} |")
    lines.append(f"| all | {total:.1f} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Install the family with its cards, write and show the table."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    install()
    write_cards(FAMILY, {stage: read_figures(stage) for stage in (*STAGES, "measure")})
    text = table()
    Path("out/table.md").write_text(text, encoding="utf-8")
    log.info("\n%s", text)
    for stage in STAGES:  # DVC has recorded them: what a killed one went on from is of no more use
        forget(stage)


if __name__ == "__main__":
    main()
