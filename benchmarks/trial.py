"""Trials on the tiny family: train in a temporary directory, then measure images of unseen subjects."""

import json
from pathlib import Path
from typing import Any, Final

from srpo_core.config import Settings
from srpo_core.generation.images import ImageSet, MeasuredImage, generate_and_measure, mean_figures
from srpo_core.models import encode_prompts
from srpo_core.models.embeddings import write_embeddings
from srpo_core.runtime.shared_files import Location
from srpo_core.scorers.metrics import MetricContext
from srpo_core.training.job import TrainJob

ROOT: Final = Path(__file__).resolve().parents[1]
SUBJECTS: Final = ROOT / "assets/tiny/recipe/subjects.json"
METRICS: Final = ("judge_wanted", "judge_top1", "judge_top5", "diversity", "reward")


def absolute(settings: Settings) -> Settings:
    """Return the settings with absolute paths."""

    def fixed(part: Any) -> Any:
        return part.model_copy(update={"path": str(ROOT / part.path)})

    parts = {name: fixed(getattr(settings, name)) for name in ("model", "judge", "select_judge")}
    rewards = [fixed(one) for one in settings.rewards]
    return settings.model_copy(update={**parts, "rewards": rewards})


def job_of(settings: Settings, state: Path) -> TrainJob:
    """Return the training job of `settings` on the files of the working directory, without early stop."""
    return TrainJob(
        inputs=Location.of(Path.cwd()),
        digests={},
        state=Location.of(state),
        base_images=Location.of(state / "base_images.safetensors"),
        seed=settings.seed,
        model=settings.model,
        rewards=settings.rewards,
        select_judge=settings.select_judge,
        control_words=settings.control_words,
        train=settings.train.model_copy(update={"early_stop": None}),
        resources=settings.resources,
        resume=0,
        attempt="trial",
    )


def evaluation_images(settings: Settings, seeds: int) -> ImageSet:
    """Return the evaluation subjects, which no training prompt contains."""
    prompts = json.loads(SUBJECTS.read_text(encoding="utf-8"))["eval"]
    condition = encode_prompts(settings.model, prompts, batch_size=64)
    return ImageSet("trade-off", prompts, ["all"] * len(prompts), condition, seeds, settings.seed)


def measured(settings: Settings, base: Any, images: ImageSet, step: int) -> list[MeasuredImage]:
    """Generate the evaluation images of a model and measure them by the gate's judge."""
    context = MetricContext(settings.rewards, settings.judge, settings.control_words)
    return generate_and_measure(
        base, f"step {step}", images, generate=settings.generate, metrics=METRICS, context=context
    )


def figures(settings: Settings, base: Any, images: ImageSet, step: int) -> dict[str, float]:
    """Return the means over the evaluation images."""
    return {"step": float(step), **mean_figures(measured(settings, base, images, step), METRICS)}


def train_prompts(settings: Settings) -> None:
    """Encode the training subjects like the stage embed."""
    prompts = json.loads(SUBJECTS.read_text(encoding="utf-8"))["train"]
    condition = encode_prompts(settings.model, prompts, batch_size=64)
    write_embeddings("train", prompts, ["all"] * len(prompts), condition)
