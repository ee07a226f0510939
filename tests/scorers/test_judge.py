import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.errors import ArtifactError
from srpo_core.scorers.judge import StyleSubjectJudge, load_style_subject_judge


@pytest.fixture
def small():
    torch.manual_seed(0)
    return StyleSubjectJudge([8, 16], ["Ink", "3D"], ["cat", "dog", "owl"], image_size=16)


@pytest.fixture
def copied(tmp_path, family):
    return shutil.copytree(family / "judge_b", tmp_path / "judge")


def inputs(count=4, size=16):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_outputs_have_the_documented_shapes_and_ranges(small):
    images = inputs()
    assert small.features(images).shape == (4, 16)
    assert small.subject_logits(images).shape == (4, 3)
    probabilities = small.style_probabilities(images)
    assert probabilities.shape == (4, 2)
    assert torch.allclose(probabilities.sum(1), torch.ones(4))


def test_features_are_the_spatial_mean_plus_maximum_for_inputs_scaled_to_minus_one_to_one(small):
    images = inputs()
    maps = small.f(2 * images - 1)
    assert torch.allclose(small.features(images), maps.mean((2, 3)) + maps.amax((2, 3)), atol=1e-5)


def test_an_image_of_another_size_is_resized_first(judge, emoji):
    images, _, _ = emoji
    larger = torch.nn.functional.interpolate(images, scale_factor=2, mode="bicubic").clamp(0, 1)
    same = judge.style_probabilities(images).argmax(1) == judge.style_probabilities(larger).argmax(1)
    assert same.float().mean() > 0.95


def test_the_judge_is_frozen_and_deterministic(small):
    assert not small.training
    assert not any(parameter.requires_grad for parameter in small.parameters())
    assert torch.equal(small.subject_logits(inputs()), small.subject_logits(inputs()))


def test_the_tiny_judge_recognizes_styles_and_subjects_of_real_images(judge, emoji):
    images, styles, names = emoji
    style = torch.tensor([judge.styles.index(name) for name in styles])
    subject = torch.tensor([judge.subjects.index(name) for name in names])
    assert (judge.style_probabilities(images).argmax(1) == style).float().mean() > 0.95
    assert (judge.subject_logits(images).argmax(1) == subject).float().mean() > 0.95


def test_the_tiny_judge_recognizes_ink_images_with_high_confidence(judge, emoji):
    images, styles, _ = emoji
    ink = torch.tensor([style == "Ink" for style in styles])
    probability = judge.style_probabilities(images)[:, judge.styles.index("Ink")]
    assert (probability[ink] > 0.9).float().mean() >= 0.9
    assert (probability[~ink] < 0.1).float().mean() >= 0.9


def test_the_error_names_missing_weights(copied):
    (copied / "judge.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"judge\.safetensors is missing"):
        load_style_subject_judge(copied)


def test_weights_with_a_missing_or_surplus_tensor_are_refused(copied):
    path = copied / "judge.safetensors"
    tensors = load_file(path)
    for changed in ({n: t for n, t in tensors.items() if n != "a.bias"}, tensors | {"c": torch.zeros(1)}):
        save_file(changed, path)
        with pytest.raises(ArtifactError) as caught:
            load_style_subject_judge(copied)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"channels": []}, {"channels": [7]}, {"styles": None}, {"image_size": "large"}]
)
def test_the_error_for_an_invalid_configuration_names_the_file(copied, change):
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError) as caught:
        load_style_subject_judge(copied)
    assert str(path) in str(caught.value)
