"""Run the demo's stages once for each seed and print how many pass: a table for docs/results.md.

    python benchmarks/demo_seeds.py                               # seeds 0 to 19 of params.yaml, about an hour
    python benchmarks/demo_seeds.py --first-seed 20 --seeds 3 --set control_words.use=ink_over_3d --until report

A seed passes if the gate accepts the chosen checkpoint and every format of the release passes its tests, as in
`make demo`. A finished stage is not run again, so the same command continues after a kill; other settings need another
`--work`. Changes are relative to the base, with intervals (95 %) where the gate has them. Images change if the wanted
style's probability, by the gate's judge, rises by more than the `tie` of `style_wins`.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
from prepared import ROOT, prepare, run_srpo, run_stage

from srpo_core.artifacts import DECISION, FIGURES, SELECTION
from srpo_core.cli.options import parse_changes
from srpo_core.config import PARAMS_FILE, parse_settings, patched, read_values
from srpo_core.gates.pairs import count_wins, pair_up
from srpo_core.workspace.stage_graph import read_graph

REFUSED: Final = 3
# column, rule, and whether its interval is printed
COLUMNS: Final = (
    ("style gained", "style_gained", True),
    ("images that win", "style_wins", False),
    ("top-1", "subject_not_traded", False),
    ("diversity, share", "diversity_kept", True),
    ("contrast, share", "contrast_kept", False),
    ("detail, factor", "detail_kept", False),
)


def main() -> None:
    """Run every seed and print the table and the count."""
    options = _options()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda seed: run_seed(seed, options), seeds))
    for line in table(rows):
        print(line)
    passed = sum(not row["refused_by"] for row in rows)
    print(f"\n{passed} of {len(rows)} seeds passed")


def run_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the stages of one seed; return its row."""
    values = patched(read_values(ROOT / PARAMS_FILE), {**options.changes, "seed": seed})
    parse_settings(values, PARAMS_FILE.name)
    work = options.work / str(seed)
    prepare(work, values, {})
    stages = [stage.name for stage in read_graph(ROOT).stages]
    for name in stages[: stages.index(options.until) + 1]:
        if name != "quantize":
            run_stage(work, name)
        elif (
            json.loads((work / DECISION).read_text())["passed"] and not (work / "runs/quantize.done").exists()
        ):
            # formats that fail are in the outcome
            code = run_srpo(work, ["stage", name], allowed=(0, REFUSED))
            (work / "runs/quantize.done").write_text(str(code))
    row = row_of(work, seed)
    print(f"seed {seed}: {', '.join(row['refused_by']) or 'passed'}", flush=True)
    return row


def row_of(work: Path, seed: int) -> dict[str, Any]:
    """Return seed, step, the rules or formats that refuse, the share of images that change, and the rules' figures."""
    decision = json.loads((work / DECISION).read_text())
    rules = {rule["name"]: rule for rule in decision["rules"]}
    refused = [name for name, rule in rules.items() if rule["verdict"] == "refuses"]
    marker = work / "runs/quantize.done"
    if marker.exists() and int(marker.read_text()) == REFUSED:
        refused.append("quantize")
    pairs = pair_up(pq.read_table(work / FIGURES), work / FIGURES)
    wins, losses, ties = count_wins(
        pairs.aligned["judge_wanted"], pairs.base["judge_wanted"], tie=rules["style_wins"]["tie"]
    )
    return {
        "seed": seed,
        "step": json.loads((work / SELECTION).read_text())["step"],
        "refused_by": refused,
        "images": (wins, losses, wins + losses + ties),
        "rules": rules,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| seed | step | gate and formats | images that gain, lose | {' | '.join(name for name, _, _ in COLUMNS)} |"
    yield "|" + "---|" * (len(COLUMNS) + 4)
    for row in rows:
        verdict = (
            f"refused: {', '.join(f'`{name}`' for name in row['refused_by'])}"
            if row["refused_by"]
            else "passed"
        )
        wins, losses, count = row["images"]
        figures = [_figure(row["rules"][rule], interval=interval) for _, rule, interval in COLUMNS]
        yield f"| {row['seed']} | {row['step']} | {verdict} | {wins}, {losses} of {count} | {' | '.join(figures)} |"


def _figure(rule: Mapping[str, Any], *, interval: bool) -> str:
    if rule["value"] is None:
        return "–"
    sign = "+" if rule["compare"] == "difference" else ""
    if not interval:
        return f"{rule['value']:{sign}.3f}"
    return f"{rule['value']:{sign}.3f} ({rule['low']:{sign}.3f} to {rule['high']:{sign}.3f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = [stage.name for stage in read_graph(ROOT).stages]
    parser.add_argument("--seeds", type=int, default=20, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting")
    parser.add_argument(
        "--until", default="quantize", choices=stages[stages.index("gate") :], help="last stage"
    )
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once, each on one thread")
    parser.add_argument("--work", type=Path, default=ROOT / ".srpo/demo_seeds")
    options = parser.parse_args()
    options.changes, options.work = parse_changes(options.set), options.work.resolve()
    return options


if __name__ == "__main__":
    main()
