from pathlib import Path

import pytest
import torch
from known_pairs import write_known_pairs

from srpo_core import artifacts
from srpo_core.config import (
    ControlWords,
    GenerateSettings,
    ModelSettings,
    RewardSettings,
    ScorerSettings,
    load_settings,
)

TINY = Path(__file__).resolve().parents[2] / "assets/tiny"
PROMPTS = ["penguin", "red apple", "tiger face"]
STYLES = ["animals", "food", "animals"]


@pytest.fixture(scope="session")
def tiny_parts():
    """The parts of the settings that all image-generating stages share, with few steps; no image is kept for later runs."""
    resources = load_settings(TINY.parents[1] / "profiles/tiny.yaml").resources
    return {
        "seed": 0,
        "model": ModelSettings(
            base="flux",
            path=str(TINY / "family/base"),
            height=64,
            width=64,
            max_sequence_length=12,
            embeddings="float32",
        ),
        "rewards": [RewardSettings(scorer="open_clip", path=str(TINY / "family/reward"), weight=1)],
        "select_judge": ScorerSettings(scorer="style_subject_judge", path=str(TINY / "family/judge_b")),
        "judge": ScorerSettings(scorer="timm_judge", path=str(TINY / "family/judge_a")),
        "control_words": ControlWords.of(wanted=["Ink"], unwanted=["3D"]),
        "generate": GenerateSettings(
            num_inference_steps=6,
            guidance_scale=3.5,
            batch_size=4,
            autocast=False,
            tf32=False,
            decode="whole",
        ),
        "resources": resources.model_copy(update={"kept_images_gb": 0.0}),
    }


@pytest.fixture(scope="session")
def tiny_condition(tiny_parts):
    """Embeddings of `PROMPTS` without and with the word Ink, which the tiny base understands."""
    from srpo_core.models import encode_prompts

    texts = [*PROMPTS, *(f"Ink. {prompt}" for prompt in PROMPTS)]
    condition = encode_prompts(tiny_parts["model"], texts, batch_size=8)
    return condition[slice(0, 3)], condition[slice(3, 6)]


@pytest.fixture
def tiny_run(tmp_path, monkeypatch, tiny_parts, tiny_condition):
    """Work in a directory where ingest and embed have run; return a function that writes a checkpoint of train.

    The checkpoint is the base with `change` applied to its transformer in place.
    """
    from srpo_core.models import load_transformer
    from srpo_core.models.embeddings import write_embeddings

    monkeypatch.chdir(tmp_path)
    write_known_pairs()
    for split in ("validation", "test"):
        write_embeddings(split, PROMPTS, STYLES, tiny_condition[0])

    def write_checkpoint(step, change=None):
        transformer = load_transformer(tiny_parts["model"], TINY / "family/base/transformer")
        if change is not None:
            with torch.no_grad():
                change(transformer)
        transformer.save_pretrained(artifacts.step_directory(step))

    return write_checkpoint
