"""What guidance does to the style words: the base that ships, drawn at several guidances, named by both judges.

Run in assets/tiny/recipe: `python -m tiny_family.guidance 1 2 3 3.5 5`; writes figures/guidance.json.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from srpo_core.scorers.judge import load_style_subject_judge
from srpo_core.scorers.timm_judge import load_timm_judge
from tiny_family.figures import write_figures
from tiny_family.judges import Judge
from tiny_family.measure import SEEDS, drawn, in_each_style, named, obeyed
from tiny_family.pictures import STYLES, read_pictures, read_subjects
from tiny_family.spread import FAMILY


def at_guidance(
    pipeline: Any, judges: Mapping[str, Judge], subjects: list[str], guidance: float
) -> dict[str, float]:
    """The shares that measure.py tells of, at one guidance: subject first and among five, style obeyed."""
    plain = drawn(pipeline, subjects, subjects, SEEDS, guidance=guidance)
    styled = in_each_style(pipeline, subjects, guidance=guidance)
    owners = [subject for subject in subjects for _ in range(SEEDS)]
    figures: dict[str, float] = {}
    for letter, judge in judges.items():
        figures[f"top1_{letter}"], figures[f"top5_{letter}"] = named(judge, plain, owners)
        for index, word in enumerate(STYLES):
            figures[f"obeys_{word}_{letter}"] = obeyed(judge, styled[word], index)
    return figures


def on_originals(judges: Mapping[str, Judge]) -> dict[str, float]:
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
    from diffusers import FluxPipeline

    parser = argparse.ArgumentParser(description="Draw the base that ships at several guidances.")
    parser.add_argument("guidances", type=float, nargs="+", help="1 to 5, what it was distilled for")
    guidances: list[float] = parser.parse_args(arguments).guidances
    torch.set_num_threads(2)
    pipeline = FluxPipeline.from_pretrained(FAMILY / "base", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judges: dict[str, Judge] = {
        "a": load_timm_judge(FAMILY / "judge_a"),
        "b": load_style_subject_judge(FAMILY / "judge_b"),
    }
    subjects = read_subjects()["eval"]
    write_figures(
        "guidance",
        {
            "real_unseen": on_originals(judges),
            "drawn": {f"{g:g}": at_guidance(pipeline, judges, subjects, g) for g in guidances},
        },
    )


if __name__ == "__main__":
    main()
