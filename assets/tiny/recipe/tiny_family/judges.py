"""Two independent judges of style and subject: another architecture, another augmentation, another order of data.

A may steer the choice of a checkpoint, B only judges at the gate. Neither is ever trained against.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from srpo_core.scorers.judge import StyleSubjectJudge
from srpo_core.scorers.timm_judge import TimmJudge
from tiny_family.figures import write_figures
from tiny_family.pictures import (
    PARQUET,
    STYLES,
    SUBJECTS,
    Pictures,
    augmented,
    read_pictures,
    read_subjects,
    to_float,
)
from tiny_family.settings import compiled, read_settings
from tiny_family.training import Plan, Task, train

Judge = StyleSubjectJudge | TimmJudge


def new_judge(settings: Mapping[str, Any]) -> Judge:
    """An untrained judge of the family's subjects."""
    names = read_subjects()
    subjects = sorted([*names["train"], *names["eval"]])
    if "model" in settings:
        judge: Judge = TimmJudge(settings["model"], settings["model_args"], STYLES, subjects, image_size=64)
    else:
        judge = StyleSubjectJudge(settings["channels"], STYLES, subjects, 64)
    return judge.requires_grad_(requires_grad=True).train()


class JudgeTask:
    """Name the style of all 919 training subjects, and the subject where the family draws it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.module: nn.Module = new_judge(settings)
        self.judge: Any = self.module
        self.pictures = read_pictures("train")
        place = {name: index for index, name in enumerate(self.judge.subjects)}
        self.targets = torch.tensor([place.get(name, -100) for name in self.pictures.subjects])
        self.drawn = (self.targets >= 0).nonzero()[:, 0]
        self.batch_size, self.augment = settings["batch_size"], settings["augment"]
        self.style_weight, self.drawn_share = settings["style_weight"], settings["drawn_share"]
        self.forward = compiled(self._forward, settings)

    def is_hidden(self, name: str) -> bool:
        """All but the first convolution and the two heads."""
        return not name.startswith(("f.0.", "f.conv1.0.", "f.stem", "a.", "b."))

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.judge.features(images)
        return self.judge.a(features), self.judge.b(features)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Cross entropy of both heads; a share of each batch are subjects that the base draws."""
        own = round(self.batch_size * self.drawn_share)
        anything = torch.randint(len(self.pictures), (self.batch_size - own,), generator=generator)
        drawn = self.drawn[torch.randint(len(self.drawn), (own,), generator=generator)]
        rows = torch.cat([anything, drawn])
        images = augmented(to_float(self.pictures.pixels[rows]), generator, self.augment)
        style, subject = self.forward(images)
        style_loss = functional.cross_entropy(style, self.pictures.styles[rows], label_smoothing=0.05)
        subject_loss = functional.cross_entropy(subject, self.targets[rows], label_smoothing=0.05)
        loss: Tensor = self.style_weight * style_loss + subject_loss
        return loss


def build(settings: Mapping[str, Any]) -> Task:
    """The task of one process."""
    return JudgeTask(settings)


@torch.no_grad()
def accuracy(judge: Judge, pictures: Pictures) -> dict[str, float]:
    """Shares of real pictures whose style, and whose subject where it is known, the judge names."""
    images = torch.split(to_float(pictures.pixels), 64)
    styles = torch.cat([judge.style_probabilities(part).argmax(-1) for part in images])
    subjects = torch.cat([judge.subject_logits(part).argmax(-1) for part in images]).tolist()
    known = [
        (judge.subjects[s], name)
        for s, name in zip(subjects, pictures.subjects, strict=True)
        if name in judge.subjects
    ]
    right = [said == name for said, name in known]
    return {
        "style": float((styles == pictures.styles).float().mean()),
        **{
            f"style_{word}": float((styles == pictures.styles)[pictures.styles == index].float().mean())
            for index, word in enumerate(STYLES)
        },
        **({"subject": sum(right) / len(right)} if right else {}),
    }


def save(judge: Judge, settings: Mapping[str, Any], target: Path) -> None:
    """Write config.json and judge.safetensors (fp16)."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    kind = {key: settings[key] for key in ("channels", "model", "model_args") if key in settings}
    config = {**kind, "image_size": 64, "styles": list(STYLES), "names": list(judge.subjects)}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in judge.state_dict().items()
    }
    save_file(weights, target / "judge.safetensors")


def main(name: str) -> None:
    """Train, save and measure judge `name` on subjects that it has never seen."""
    settings = read_settings(name)
    plan = Plan(**settings["plan"])
    trained = train(build, settings, plan, [PARQUET, SUBJECTS])
    judge = new_judge(settings)
    judge.load_state_dict(
        {
            key: value.half().float() if value.is_floating_point() else value
            for key, value in trained.weights.items()
        }
    )
    judge.eval()
    save(judge, settings, Path("out") / name)
    unseen, seen = (
        accuracy(judge, read_pictures("eval", "novel")),
        accuracy(judge, read_pictures("train").of(judge.subjects)),
    )
    figures = {
        **{f"{key}_unseen": value for key, value in unseen.items()},
        "subject_seen": seen["subject"],
        "cpu_seconds": trained.cpu_seconds,
    }
    write_figures(plan.name, figures)


if __name__ == "__main__":
    main(sys.argv[1])
