"""Make the tables and charts of the comparison of methods from the rows that benchmarks/compare.py has written.

    python benchmarks/compare_tables.py                  # print the tables
    python benchmarks/compare_tables.py --write docs     # put them into docs/comparison.md, and the charts beside it

A figure is the mean over training seeds and test prompts. Its interval (95 %) is that of a crossed bootstrap, which draws
seeds and prompts independently, with the base's or the other method's figures of the same seed and prompt. Three seeds
are few, so intervals over seeds are too narrow rather than too wide; the tables say how many there were.

CPU seconds are steps times the cost of a step by benchmarks/method_costs.py, which measures all methods in turn in one
process. Those that a training process saw depend on what ran beside it.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from compare import ROWS
from compare_chart import draw_curves
from compare_curves import (
    DIVERSITY,
    MARGIN,
    STYLE,
    SUBJECT,
    Curve,
    Estimate,
    change,
    last_step_with_subject,
    non_inferiority,
    read_curves,
    reference_of,
    style_beside,
)
from contenders import REFERENCE
from method_costs import COSTS, read_costs
from paper_table import table_beside_paper
from prepared import ROOT

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
COLUMNS: Final = (
    (STYLE, "style gained"),
    ("judge_top5", "subject, top-5"),
    (SUBJECT, "subject, top-1"),
    (DIVERSITY, "diversity, share of the base's"),
    ("kid", "KID"),
    ("relative_reward", "relative reward"),
    ("reward", "plain reward"),
)


def table_at_step(curves: Sequence[Curve], step: int) -> list[str]:
    """Return the table of all methods after the same number of steps."""
    rows = []
    for curve in curves:
        found = curve.at_step(step)
        if found is not None:
            cells = [_cell(name, change(name, found, curve.base)) for name, _ in COLUMNS]
            rows.append([curve.method, str(len(found)), f"{curve.seconds_at(step):.0f}", *cells])
    return _markdown(["method", "seeds", "CPU s", *(title for _, title in COLUMNS)], rows)


def table_at_seconds(curves: Sequence[Curve], seconds: float) -> list[str]:
    """Return the table of all methods after the same CPU seconds, with the style gained beside the reference method's."""
    reference = reference_of(curves)
    compared = reference.at_seconds(seconds)
    rows = []
    for curve in curves:
        found = curve.at_seconds(seconds)
        if found is None:
            longest = f"its training ends after {curve.cpu[-1]:.0f} CPU s"
            rows.append([curve.method, str(len(curve.seeds)), longest, *["" for _ in COLUMNS]])
            continue
        cells = [_cell(name, change(name, found, curve.base)) for name, _ in COLUMNS]
        beside = "" if compared is None else str(style_beside(curve, found, reference, compared).difference)
        rows.append([curve.method, str(len(found)), beside, *cells])
    return _markdown(["method", "seeds", f"style beside {REFERENCE}", *(title for _, title in COLUMNS)], rows)


def table_of_efficiency(curves: Sequence[Curve]) -> list[str]:
    """Return the style that each method gains per CPU second while it keeps the subject."""
    rows = []
    for curve in curves:
        step = last_step_with_subject(curve)
        if step is None:
            rows.append([curve.method, "none", "", "", ""])
            continue
        found = curve.at_step(step)
        assert found is not None, "it is one of the curve's own steps"
        gained, seconds = change(STYLE, found, curve.base), curve.seconds_at(step)
        rows.append(
            [
                curve.method,
                str(step),
                f"{seconds:.0f}",
                str(gained),
                f"{1000 * gained.value / seconds:.1f} ({1000 * gained.low / seconds:.1f} to {1000 * gained.high / seconds:.1f})",
            ]
        )
    return _markdown(
        ["method", "last step with the subject", "CPU s", "style gained", "style per 1,000 CPU s"], rows
    )


def table_of_equal_gain(curves: Sequence[Curve], step: int) -> list[str]:
    """Return the table of the methods whose gain is compared with the reference method's after the same steps."""
    reference, rows = reference_of(curves), []
    for curve in curves:
        found = None if curve is reference else non_inferiority(curve, reference, step)
        if found is not None:
            share = curve.seconds_at(step) / reference.seconds_at(step)
            rows.append(
                [curve.method, str(found.seeds), f"{share:.2f}", str(found.difference), found.verdict]
            )
    titles = ["method", "seeds", "share of the CPU s", f"style beside {REFERENCE}"]
    return _markdown([*titles, f"equal: not lower by {MARGIN}"], rows)


def sections(pairs: dict[str, list[Curve]], step: int) -> Iterator[str]:
    """Yield the lines of all tables."""
    for pair, curves in pairs.items():
        seconds = reference_of(curves).seconds_at(step)
        yield from [
            "",
            f"#### {pair.replace('_', ' ')}: after {step} steps",
            "",
            *table_at_step(curves, step),
        ]
        yield from ["", f"#### {pair.replace('_', ' ')}: after {seconds:.0f} CPU seconds", ""]
        yield from table_at_seconds(curves, seconds)
        yield from [
            "",
            f"#### {pair.replace('_', ' ')}: style per CPU second",
            "",
            *table_of_efficiency(curves),
        ]
        title = f"#### {pair.replace('_', ' ')}: is the gain after {step} steps that of {REFERENCE}?"
        yield from ["", title, "", *table_of_equal_gain(curves, step)]
        titles, *rows = table_beside_paper(curves, step)
        yield from [
            "",
            f"#### {pair.replace('_', ' ')}: beside the paper's table 1",
            "",
            *_markdown(titles, rows),
        ]


def write_section(lines: Sequence[str], page: Path) -> None:
    """Replace what is between the two marks of a page. Raises `SystemExit` if it has no such marks."""
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page} has no place for the tables: add the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    page.write_text(before + "\n".join([BEGIN, *lines, "", END]) + rest.split(END)[1], encoding="utf-8")


def _cell(metric: str, estimate: Estimate) -> str:
    if metric == DIVERSITY:
        return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
    return str(estimate)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--costs", type=Path, default=COSTS, help="the costs by benchmarks/method_costs.py")
    parser.add_argument("--step", type=int, default=30, help="the step of the first table")
    parser.add_argument("--write", type=Path, help="the directory of comparison.md and of the charts")
    options = parser.parse_args()
    pairs = read_curves(options.rows, read_costs(options.costs))
    lines = list(sections(pairs, options.step))
    if not options.write:
        print("\n".join(lines))
        return
    for pair, curves in pairs.items():
        (ROOT / options.write / f"compare_{pair}.svg").write_text(draw_curves(curves, pair), encoding="utf-8")
    write_section(lines, ROOT / options.write / "comparison.md")


if __name__ == "__main__":
    main()
