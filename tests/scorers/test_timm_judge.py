import json
import shutil

import pytest
import torch

from srpo_core.errors import ArtifactError
from srpo_core.scorers.timm_judge import TimmJudge, load_timm_judge


@pytest.fixture
def small():
    torch.manual_seed(0)
    return TimmJudge(
        "regnetx_002", {"output_stride": 16}, ["Ink", "3D"], ["cat", "dog", "owl"], image_size=32
    )


@pytest.fixture
def copied(tmp_path, family):
    return shutil.copytree(family / "judge_a", tmp_path / "judge")


def test_outputs_have_the_documented_shapes_and_ranges(small):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert small.features(images).shape == (4, small.f.num_features)
    assert small.subject_logits(images).shape == (4, 3)
    probabilities = small.style_probabilities(images)
    assert probabilities.shape == (4, 2)
    assert torch.allclose(probabilities.sum(1), torch.ones(4))


def test_the_network_receives_pixels_between_minus_one_and_one(small):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(small.features(images), small.f(2 * images - 1), atol=1e-5)


def test_the_logits_of_an_image_do_not_depend_on_its_batch(small):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(small.subject_logits(images)[:1], small.subject_logits(images[:1]), atol=1e-5)


def test_the_selection_judge_recognizes_styles_and_subjects_of_real_images(family, emoji):
    judge = load_timm_judge(family / "judge_a")
    images, styles, names = emoji
    style = torch.tensor([judge.styles.index(name) for name in styles])
    subject = torch.tensor([judge.subjects.index(name) for name in names])
    assert (judge.style_probabilities(images).argmax(1) == style).float().mean() > 0.9  # chance is 0.25
    assert (judge.subject_logits(images).argmax(1) == subject).float().mean() > 0.9  # chance is 0.006


def test_the_two_judges_differ_in_architecture_and_have_the_same_styles_and_subjects(family):
    a = json.loads((family / "judge_a/config.json").read_text())
    b = json.loads((family / "judge_b/config.json").read_text())
    assert "model" in a
    assert "channels" in b
    assert (a["styles"], a["names"]) == (b["styles"], b["names"])


def test_an_unknown_network_is_refused_in_one_line(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model": "no_such_network"}))
    with pytest.raises(ArtifactError, match="not a configuration of a timm judge"):
        load_timm_judge(copied)


def test_weights_of_another_architecture_are_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model": "resnet14t"}))
    with pytest.raises(ArtifactError, match=r"judge\.safetensors"):
        load_timm_judge(copied)
