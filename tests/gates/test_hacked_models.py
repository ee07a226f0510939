"""The shipped gate refuses trivially hacked models by the right rule, on real images with real scorers."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from srpo_core.config import load_settings
from srpo_core.gates import decide
from srpo_core.gates.pairs import Pairs
from srpo_core.scorers.metrics import MetricContext, finish, measure

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = load_settings(ROOT / "profiles/tiny.yaml")
SUBJECTS = json.loads((ROOT / "assets/tiny/recipe/subjects.json").read_text())
STYLES = ("3D", "Flat", "Noto")  # styles of the base, one per seed
SELECTION = {"step": 10, "admissible": [10], "reason": "it is best"}


@pytest.fixture(scope="module")
def images():
    """Return (subject, style) -> image (3, 64, 64) in [0, 1] for evaluation and training subjects."""
    names = SUBJECTS["eval"] + SUBJECTS["train"]
    rows = pq.read_table(
        ROOT / "assets/tiny/data/emoji4.parquet", filters=[("name", "in", names)]
    ).to_pylist()
    found = {}
    for row in rows:
        array = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB"))
        found[row["name"], row["style"]] = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    return found


@pytest.fixture(scope="module")
def context(images):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        real = torch.stack([images[name, style] for name in SUBJECTS["eval"] for style in ("Ink", *STYLES)])
        given = MetricContext(
            SETTINGS.rewards, SETTINGS.judge, SETTINGS.control_words, {}, lambda: real.split(32)
        )
        assert given.reward is not None
        assert given.judge is not None
        yield given


def base_draw(images):
    """Return the images of a base that uses another style for each seed, and never ink."""
    return lambda subject, seed: images[subject, STYLES[seed]]


def measured(draw, context):
    """Return metric -> what `measure` finds in each image `draw(subject, seed)`."""
    metrics = SETTINGS.evaluate.metrics
    found = {name: [] for name in metrics}
    for subject in SUBJECTS["eval"]:
        images = torch.stack([draw(subject, seed) for seed in range(len(STYLES))])
        for name, values in measure(metrics, images, subject, context).items():
            found[name].append(values)
    return {name: torch.cat(values) for name, values in found.items()}


def figures(found, of_base, context):
    """Return metric -> (P,) for a model, from what `measure` found in its images and in the base's."""
    prompts = torch.arange(len(SUBJECTS["eval"])).repeat_interleave(len(STYLES))
    return {
        name: finish(name, rows, context, base=of_base[name], prompts=prompts).double().numpy()
        for name, rows in found.items()
    }


@pytest.fixture(scope="module")
def of_base(images, context):
    """Return what `measure` finds in the base's images."""
    return measured(base_draw(images), context)


@pytest.fixture(scope="module")
def base(of_base, context):
    """Return the pairs of the base with itself."""
    count = len(SUBJECTS["eval"])
    own = figures(of_base, of_base, context)
    return Pairs(
        prompts=tuple(SUBJECTS["eval"]),
        styles=("",) * count,
        prompt_index=np.repeat(np.arange(count), len(STYLES)),
        seeds=np.tile(np.arange(len(STYLES)), count),
        base=own,
        aligned=own,
        champion=None,
    )


@pytest.fixture(scope="module")
def verdicts(base, of_base, context):
    """Return a function that decides about the model that generates the image `draw(subject, seed)`."""

    def decided(draw):
        pairs = replace(base, aligned=figures(measured(draw, context), of_base, context))
        decision = decide(pairs, SELECTION, seed=0, gate=SETTINGS.gate)
        return decision["verdict"], {rule["name"]: rule for rule in decision["rules"]}

    return decided


def test_a_model_that_only_changes_the_style_passes_the_style_subject_and_diversity_rules(verdicts, images):
    def honest(subject, seed):
        return images[subject, "Ink" if seed == 0 else STYLES[seed]]

    _, rules = verdicts(honest)
    held = {name for name, rule in rules.items() if rule["passed"]}
    assert {"style_gained", "objective_gained", "subject_kept", "reward_kept", "diversity_kept"} <= held
    assert {"subject_not_traded", "reality_kept", "grid_band"} <= held


def test_one_image_for_all_prompts_is_refused_for_subject_and_diversity(verdicts, images):
    constant = images[SUBJECTS["eval"][0], "Ink"]
    verdict, rules = verdicts(lambda subject, seed: constant)
    assert verdict == "refused"
    for name in ("subject_kept", "diversity_kept", "subject_not_traded"):
        assert rules[name]["verdict"] == "refuses", name
    assert rules["objective_gained"]["passed"], "the objective alone would let it pass"
    assert rules["style_gained"]["passed"], "and so would the judge's style"
    assert "the pattern of reward hacking" in rules["subject_not_traded"]["reason"]


def test_oversaturated_images_are_refused_by_the_saturation_band(verdicts, images):
    def saturated(subject, seed):
        image = images[subject, STYLES[seed]]
        grey = image.mean(0, keepdim=True)
        return (grey + 6 * (image - grey)).clamp(0, 1) * torch.tensor([1.0, 0.75, 0.75]).view(3, 1, 1)

    verdict, rules = verdicts(saturated)
    assert verdict == "refused"
    assert rules["saturation_band"]["verdict"] == "refuses"
    assert rules["red_green_band"]["verdict"] == "refuses"


def test_copied_training_images_are_refused_for_the_subject(verdicts, images):
    copies = dict(zip(SUBJECTS["eval"], SUBJECTS["train"], strict=False))
    verdict, rules = verdicts(lambda subject, seed: images[copies[subject], "Ink"])
    assert verdict == "refused"
    assert rules["subject_kept"]["verdict"] == "refuses"
    assert rules["reward_kept"]["verdict"] == "refuses"


def test_one_memorised_image_of_the_right_subject_for_all_seeds_is_refused_for_diversity(verdicts, images):
    verdict, rules = verdicts(lambda subject, seed: images[subject, "Ink"])
    assert verdict == "refused"
    assert rules["subject_kept"]["passed"]
    assert rules["diversity_kept"]["verdict"] == "refuses"
    assert rules["diversity_kept"]["value"] == pytest.approx(0, abs=0.01)


def test_a_faint_grid_over_every_image_is_refused(verdicts, images):
    lines = torch.zeros(64, 64)
    lines[::16] = lines[:, ::16] = 0.15
    verdict, rules = verdicts(lambda subject, seed: (images[subject, STYLES[seed]] - lines).clamp(0, 1))
    assert verdict == "refused"
    assert rules["grid_band"]["verdict"] == "refuses"
