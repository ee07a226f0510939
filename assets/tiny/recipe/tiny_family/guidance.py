"""What guidance does to the style words: the base that ships, drawn at several guidances, named by both judges.

Run in assets/tiny/recipe: `python -m tiny_family.guidance 2 2.5 3 3.5 5`; writes figures/guidance.json.
"""

import argparse
from collections.abc import Sequence

import torch

from tiny_family.figures import write_figures
from tiny_family.judges import Judge
from tiny_family.measure import (
    SEEDS,
    drawn,
    in_each_style,
    obeyed,
    read_judges,
    read_pipeline,
    shares,
)
from tiny_family.pictures import STYLES, read_pictures, read_subjects
from tiny_family.settings import read_settings
from tiny_family.spread import FAMILY


def on_originals(judges: dict[str, Judge]) -> dict[str, float]:
    """By style and judge, the share of real pictures of unseen subjects in which the judge sees their style."""
    splits = [read_pictures(split) for split in ("eval", "novel")]
    return {
        f"sees_{word}_{letter}": obeyed(
            judge, torch.cat([split.pixels[split.styles == index] for split in splits]).float() / 255, index
        )
        for index, word in enumerate(STYLES)
        for letter, judge in judges.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, judge, write figures/guidance.json."""
    low, high = read_settings("distill")["guidance"]
    parser = argparse.ArgumentParser(description="Draw the base that ships at several guidances.")
    parser.add_argument(
        "guidances", type=float, nargs="+", help=f"{low:g} to {high:g}, what the base was distilled for"
    )
    guidances: list[float] = parser.parse_args(arguments).guidances
    for guidance in guidances:
        if not low <= guidance <= high:
            parser.error(
                f"guidance {guidance:g}: the base was distilled for {low:g} to {high:g} (params.yaml)"
            )
    torch.set_num_threads(2)
    pipeline, judges = read_pipeline(FAMILY / "base"), read_judges(FAMILY)
    subjects = read_subjects()["eval"]
    at_each = {
        f"{guidance:g}": shares(
            judges,
            drawn(pipeline, subjects, subjects, SEEDS, guidance=guidance),
            in_each_style(pipeline, subjects, guidance=guidance),
            subjects,
        )
        for guidance in guidances
    }
    write_figures("guidance", {"real_unseen": on_originals(judges), "drawn": at_each})


if __name__ == "__main__":
    main()
