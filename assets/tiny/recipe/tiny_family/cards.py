"""Model cards of the family, in the hub's form: a README.md with a YAML header beside each part's weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tiny_family.settings import read_settings

SOURCES: Final = (
    "Drawings: Fluent Emoji by Microsoft (MIT) and Noto Emoji by Google (Apache-2.0); "
    "see ../../README.md and ../../licences."
)


@dataclass(frozen=True)
class Part:
    """What a card says: the stages that made the part, a title, a text, and what tells that it is good."""

    stages: tuple[str, ...]
    library: str
    tag: str
    title: str
    text: str
    figures: tuple[str, ...]


CARDS: Final[Mapping[str, Part]] = {
    "base": Part(
        ("vae", "base", "distill"),
        "diffusers",
        "text-to-image",
        "A FLUX of 64 x 64 pixels",
        "Draws 160 subjects in four styles, and nothing else. `FluxPipeline.from_pretrained` loads it; give it "
        "`height=64, width=64, max_sequence_length=12`. Trained by flow matching from nothing, then distilled to take "
        "guidance as an input. It shows a method at work on a laptop and says nothing about pictures of full size.",
        (
            "psnr_unseen_db",
            "top1_b",
            "top5_b",
            "obeys_3D_b",
            "obeys_Flat_b",
            "obeys_Ink_b",
            "obeys_Noto_b",
            "chance_top1",
        ),
    ),
    "reward": Part(
        ("reward",),
        "open_clip",
        "zero-shot-image-classification",
        "A small CLIP, trained against",
        "Scores a picture against a name, with or without a style word. Trained on the 919 training subjects.",
        ("subject_of_160", "unseen_subject_of_10", "unseen_subject_of_305", "unseen_style"),
    ),
    "judge_a": Part(
        ("judge_a",),
        "timm",
        "image-classification",
        "Judge A: may choose a checkpoint, never trained against",
        "Names style (4) and subject (160) of a picture.",
        ("style_unseen", "subject_seen"),
    ),
    "judge_b": Part(
        ("judge_b",),
        "pytorch",
        "image-classification",
        "Judge B: judges at the gate, never trained against, chooses nothing",
        "Names style (4) and subject (160) of a picture.",
        ("style_unseen", "subject_seen"),
    ),
}


def card(part: Part, figures: Mapping[str, Any]) -> str:
    """The text of one card; `figures` are all that the recipe measured."""
    header = {
        "license": "apache-2.0",
        "library_name": part.library,
        "pipeline_tag": part.tag,
        "tags": ["emoji"],
    }
    plans = [(stage, read_settings(stage)["plan"]) for stage in part.stages]
    trained = "".join(f"| {stage} | {plan['steps']} | {plan['seed']} |\n" for stage, plan in plans)
    measured = "".join(f"| {name} | {figures[name]:.3f} |\n" for name in part.figures)
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {part.title}\n\n{part.text}\n\n"
        f"| stage | steps | seed |\n|---|---|---|\n{trained}\n| figure | value |\n|---|---|\n{measured}\n"
        f"Made by `make tiny-family` (assets/tiny/recipe); what the figures mean stands in assets/tiny/README.md.\n"
        f"{SOURCES}\n"
    )


def write_cards(family: Path, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the card of every part below `family`; `figures` by stage, as figures/*.json hold them."""
    for name, part in CARDS.items():
        own = {key: value for stage in (*part.stages, "measure") for key, value in figures[stage].items()}
        (family / name / "README.md").write_text(card(part, own), encoding="utf-8")
