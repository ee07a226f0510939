"""The reward: a small CLIP in open_clip's classes that links pictures, names and style words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD
from tiny_family.captions import caption
from tiny_family.figures import write_figures
from tiny_family.pictures import PARQUET, STYLES, Pictures, augmented, read_pictures, read_subjects, to_float
from tiny_family.settings import read_settings
from tiny_family.training import Plan, Task, generator, train

OUT: Final = Path("out/reward")
NAME: Final = "tiny-emoji-clip"
CHOICES: Final = 10


def new_reward() -> Any:
    """An untrained open_clip model, of the configuration that `main` has written."""
    import open_clip

    open_clip.add_model_config(OUT / f"{NAME}.json")
    return open_clip.create_model(NAME)


def normalized(images: Tensor) -> Tensor:
    """CLIP's mean and deviation."""
    return (images - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]


class RewardTask:
    """Contrast pictures with captions; the same subject in another style is half right.

    The style word is left out half of the time, so that a style does not drown the subject.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import open_clip

        self.module: nn.Module = new_reward()
        self.model: Any = self.module
        self.tokenizer = open_clip.SimpleTokenizer(
            context_length=settings["model"]["text_cfg"]["context_length"]
        )
        pictures = read_pictures("train")
        self.pictures = pictures.of(sorted(set(pictures.subjects)))
        self.rows = torch.arange(len(self.pictures)).reshape(-1, len(STYLES))
        self.batch_subjects, self.augment = settings["batch_subjects"], settings["augment"]
        self.soft_positive = settings["soft_positive"]

    def is_hidden(self, name: str) -> bool:
        """Convolutions and projections inside the towers; neither the stem nor embeddings."""
        inside = name.startswith(("visual.layer", "visual.conv2", "visual.conv3", "transformer."))
        return inside and "ln" not in name

    def loss(self, generator: torch.Generator) -> Tensor:
        """Symmetric cross entropy with soft targets over subjects times styles."""
        chosen = torch.randperm(len(self.rows), generator=generator)[: self.batch_subjects]
        rows = self.rows[chosen].reshape(-1)
        styles = self.pictures.styles[rows].tolist()
        plain = (torch.rand(len(chosen), generator=generator) < 0.5).repeat_interleave(len(STYLES)).tolist()
        texts = [
            caption(self.pictures.subjects[row], None if bare else style)
            for row, style, bare in zip(rows.tolist(), styles, plain, strict=True)
        ]
        images = augmented(to_float(self.pictures.pixels[rows]), generator, self.augment)
        image = functional.normalize(self.model.encode_image(normalized(images)), dim=-1)
        text = functional.normalize(self.model.encode_text(self.tokenizer(texts)), dim=-1)
        logits = self.model.logit_scale.exp().clamp(max=100) * image @ text.T
        target = self._targets(chosen, torch.tensor(plain))
        return (soft_cross_entropy(logits, target) + soft_cross_entropy(logits.T, target.T)) / 2

    def _targets(self, chosen: Tensor, plain: Tensor) -> Tensor:
        """1 for the own caption, `soft_positive` for the subject in another style, all styles when it is plain."""
        subject = torch.arange(len(chosen)).repeat_interleave(len(STYLES))
        same = (subject[:, None] == subject[None, :]).float()
        weight = torch.where(plain[None, :], 1.0, self.soft_positive) * same
        weight.fill_diagonal_(1.0)
        return weight


def soft_cross_entropy(logits: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy with each row of `weight` as an unnormalised distribution."""
    target = weight / weight.sum(dim=1, keepdim=True)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


def build(settings: Mapping[str, Any]) -> Task:
    """The task of one process."""
    return RewardTask(settings)


class Scores:
    """Features of a trained reward over real pictures."""

    def __init__(self, model: Any, context: int) -> None:
        import open_clip

        self.model, self.tokenizer = model, open_clip.SimpleTokenizer(context_length=context)

    @torch.no_grad()
    def images(self, pictures: Pictures) -> Tensor:
        """Unit features (N, D) of pictures."""
        parts = [
            self.model.encode_image(normalized(to_float(part))) for part in torch.split(pictures.pixels, 64)
        ]
        return functional.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Unit features (N, D) of texts."""
        return functional.normalize(self.model.encode_text(self.tokenizer(texts)), dim=-1)


def measure(model: Any, context: int) -> dict[str, float]:
    """What the reward ranks: seen and unseen subjects, styles, and how alike its style words are."""
    scores = Scores(model, context)
    subjects = read_subjects()
    family = [*subjects["train"], *subjects["eval"]]
    seen, unseen = read_pictures("train").of(family), read_pictures("eval", "novel")
    names = sorted(set(unseen.subjects))
    words = scores.texts([caption(name, style) for name in family for style in range(len(STYLES))])
    words = words.reshape(len(family), len(STYLES), -1)
    images = scores.images(unseen)
    styled = scores.texts([caption(name, style) for name in unseen.subjects for style in range(len(STYLES))])
    styled = styled.reshape(len(unseen), len(STYLES), -1)
    style = (images[:, None] * styled).sum(-1).argmax(1)
    return {
        "subject_of_160": retrieval(scores.images(seen), scores.texts(family), seen.subjects, family),
        "unseen_subject_of_10": among_few(images, scores.texts(names), unseen.subjects, names),
        "unseen_subject_of_305": retrieval(images, scores.texts(names), unseen.subjects, names),
        "unseen_style": float((style == unseen.styles).float().mean()),
        "text_cosine_3d_flat": float((words[:, 0] * words[:, 1]).sum(-1).mean()),
    }


def retrieval(images: Tensor, texts: Tensor, subjects: Any, names: list[str]) -> float:
    """Share of pictures whose own name scores highest among all names."""
    best = (images @ texts.T).argmax(1).tolist()
    right: list[bool] = [names[index] == subject for index, subject in zip(best, subjects, strict=True)]
    return sum(right) / len(right)


def among_few(images: Tensor, texts: Tensor, subjects: Any, names: list[str]) -> float:
    """Share of pictures whose own name scores highest among it and nine others; chance is .1."""
    place = {name: index for index, name in enumerate(names)}
    draws, right = generator(0, "among few"), 0
    for image, subject in zip(images, subjects, strict=True):
        own = place[subject]
        others = torch.randperm(len(names) - 1, generator=draws)[: CHOICES - 1]
        others = others + (others >= own)
        right += bool((texts[others] @ image).max() < texts[own] @ image)
    return right / len(subjects)


def main() -> None:
    """Train, save in fp16, measure."""
    from safetensors.torch import save_file

    settings = read_settings("reward")
    plan = Plan(**settings["plan"])
    OUT.mkdir(parents=True, exist_ok=True)
    config = json.dumps(settings["model"], indent=1)
    (OUT / f"{NAME}.json").write_text(f"{config}\n", encoding="utf-8")
    trained = train(build, settings, plan, [PARQUET])
    weights = {k: v.half() if v.is_floating_point() else v for k, v in trained.weights.items()}
    model = new_reward()
    save_file({k: v.contiguous() for k, v in weights.items()}, OUT / f"{NAME}.safetensors")
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    model.eval()
    figures = {
        **measure(model, settings["model"]["text_cfg"]["context_length"]),
        "cpu_seconds": trained.cpu_seconds,
    }
    write_figures(plan.name, figures)


if __name__ == "__main__":
    main()
