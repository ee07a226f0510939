"""What the family is worth: pictures that the base draws, named by both judges."""

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from srpo_core.scorers.judge import load_style_subject_judge
from srpo_core.scorers.timm_judge import load_timm_judge
from tiny_family.captions import T5_TOKENS, caption
from tiny_family.distill import OUT as BASE
from tiny_family.figures import write_figures
from tiny_family.judges import Judge
from tiny_family.pictures import STYLES, read_pictures, read_subjects
from tiny_family.training import generator

SEEDS: Final = 10
STYLE_SEEDS: Final = 10  # three left ± .07 on the share that obeys
STEPS: Final = 16
GUIDANCE: Final = 3.5
GRID: Final = Path("out/base_grid.png")


@torch.no_grad()
def drawn(
    pipeline: Any, prompts: list[str], subjects: list[str], seeds: int, *, guidance: float = GUIDANCE
) -> Tensor:
    """Pictures (len(prompts) · seeds, 3, 64, 64) in [0, 1], all seeds of a prompt in a row.

    A subject has the same noise in every style, so that pictures of two styles differ by the style alone.
    """
    repeated = [prompt for prompt in prompts for _ in range(seeds)]
    noise = [
        torch.randn(16, 64, generator=generator(0, subject, seed))
        for subject in subjects
        for seed in range(seeds)
    ]
    parts = []
    for start in range(0, len(repeated), 40):
        images = pipeline(
            repeated[start : start + 40],
            height=64,
            width=64,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            max_sequence_length=T5_TOKENS,
            latents=torch.stack(noise[start : start + 40]),
            output_type="pt",
        ).images
        parts.append(images.float())
    return torch.cat(parts)


@torch.no_grad()
def named(judge: Judge, images: Tensor, subjects: list[str]) -> tuple[float, float]:
    """Shares of pictures whose subject is the judge's first, and among its first five."""
    logits = torch.cat([judge.subject_logits(part) for part in torch.split(images, 64)])
    own = torch.tensor([judge.subjects.index(subject) for subject in subjects])
    five = logits.topk(5, dim=1).indices == own[:, None]
    return float(five[:, 0].float().mean()), float(five.any(1).float().mean())


def in_each_style(pipeline: Any, subjects: list[str], *, guidance: float = GUIDANCE) -> dict[str, Tensor]:
    """By style word, pictures (len(subjects) · STYLE_SEEDS, 3, 64, 64) that were asked for in it."""
    return {
        word: drawn(
            pipeline,
            [caption(subject, index) for subject in subjects],
            subjects,
            STYLE_SEEDS,
            guidance=guidance,
        )
        for index, word in enumerate(STYLES)
    }


@torch.no_grad()
def obeyed(judge: Judge, images: Tensor, style: int) -> float:
    """Share of pictures in which the judge sees the style asked for."""
    said = torch.cat([judge.style_probabilities(part).argmax(-1) for part in torch.split(images, 64)])
    return float((said == style).float().mean())


def shares(
    judges: dict[str, Judge], plain: Tensor, styled: dict[str, Tensor], subjects: list[str]
) -> dict[str, float]:
    """By judge: subject named first and among five in `plain` pictures, style obeyed in `styled` ones."""
    owners = [subject for subject in subjects for _ in range(len(plain) // len(subjects))]
    figures: dict[str, float] = {}
    for letter, judge in judges.items():
        figures[f"top1_{letter}"], figures[f"top5_{letter}"] = named(judge, plain, owners)
        for index, word in enumerate(STYLES):
            figures[f"obeys_{word}_{letter}"] = obeyed(judge, styled[word], index)
    return figures


@torch.no_grad()
def style_distances(images: dict[str, Tensor]) -> dict[str, float]:
    """Root mean square difference between the same subjects in each pair of styles, 0 to 1."""
    names = list(images)
    return {
        f"{first}-{second}": float((images[first] - images[second]).square().mean().sqrt())
        for index, first in enumerate(names)
        for second in names[index + 1 :]
    }


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Pictures side by side, twice their size."""
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(
        torch.nn.functional.interpolate(images, scale_factor=2), path, nrow=columns, padding=4, pad_value=1
    )


def read_pipeline(base: Path) -> Any:
    """A base in float32, without progress bars."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(base, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_judges(place: Path) -> dict[str, Judge]:
    """Both judges, by letter."""
    return {
        "a": load_timm_judge(place / "judge_a"),
        "b": load_style_subject_judge(place / "judge_b"),
    }


def main() -> None:
    """Draw, judge, write figures/measure.json and the grids."""
    torch.set_num_threads(2)
    pipeline, judges = read_pipeline(BASE), read_judges(Path("out"))
    subjects = read_subjects()["eval"]
    plain, styled = drawn(pipeline, subjects, subjects, SEEDS), in_each_style(pipeline, subjects)
    figures: dict[str, Any] = {
        "pictures": len(plain),
        "chance_top1": 1 / len(judges["a"].subjects),
        **shares(judges, plain, styled, subjects),
    }
    real = read_pictures("train").of(subjects)
    originals = {word: real.pixels[real.styles == index].float() / 255 for index, word in enumerate(STYLES)}
    figures["distance_drawn"] = style_distances(
        {word: images[::STYLE_SEEDS] for word, images in styled.items()}
    )
    figures["distance_original"] = style_distances(originals)
    write_figures("measure", figures)
    write_grid(plain[::SEEDS], GRID, 10)
    rows = [styled[word][::STYLE_SEEDS][::4] for word in STYLES]
    write_grid(torch.cat(rows), GRID.with_name("styles_grid.png"), 10)


if __name__ == "__main__":
    main()
