import json
import math

import pytest
import torch
from safetensors.torch import save_file

from srpo_core.errors import ArtifactError
from srpo_core.scorers.open_clip import load_open_clip


@pytest.fixture
def directory(tmp_path, small_clip, small_config):
    (tmp_path / "small.json").write_text(json.dumps(small_config))
    save_file(small_clip.state_dict(), tmp_path / "small.safetensors")
    return tmp_path


@pytest.fixture
def small(directory):
    return load_open_clip(directory)


def images(count=3, size=40):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_a_reward_is_a_cosine_similarity_without_logit_scale(small):
    assert small.scale == 1.0


def test_a_step_along_the_gradient_raises_the_reward_by_the_predicted_amount(small):
    text = small.encode_texts(["red apple"])[0]
    image = images(1).requires_grad_()
    score = (small.encode_images(image) @ text).sum()
    (gradient,) = torch.autograd.grad(score, image)
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        rise = ((small.encode_images(image + step) - small.encode_images(image - step)) @ text).item()
    assert math.isclose(rise, 0.1 * gradient.norm(), rel_tol=0.02)


def test_the_error_names_a_missing_directory(tmp_path, refusal):
    assert str(tmp_path / "nowhere") in refusal(load_open_clip, tmp_path / "nowhere")


def test_two_configurations_are_refused_as_ambiguous(directory, refusal):
    (directory / "other.json").write_text("{}")
    line = refusal(load_open_clip, directory)
    assert str(directory) in line
    assert "contains 2" in line


def test_the_error_names_missing_weights(directory, refusal):
    (directory / "small.safetensors").unlink()
    assert f"{directory / 'small.safetensors'} is missing" in refusal(load_open_clip, directory)


def test_the_error_names_truncated_weights(directory, refusal):
    path = directory / "small.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: cut at " in refusal(load_open_clip, directory)


def test_the_error_names_weights_of_another_architecture(directory, small_config, refusal):
    wider = small_config | {"embed_dim": 24}
    (directory / "small.json").write_text(json.dumps(wider))
    line = refusal(load_open_clip, directory)
    assert str(directory / "small.safetensors") in line
    assert "another model" in line


@pytest.mark.parametrize("text", ["{", "[]", '{"embed_dim": 16}', '{"hf_model": 1}'])
def test_the_error_names_a_broken_configuration(directory, text, refusal):
    (directory / "small.json").write_text(text)
    assert str(directory / "small.json") in refusal(load_open_clip, directory)


def test_the_tiny_reward_recognizes_the_subject_of_real_images(reward, emoji):
    images, _, names = emoji
    subjects = sorted(set(names))
    texts = reward.encode_texts(subjects)
    best = (reward.encode_images(images) @ texts.T).argmax(1).tolist()
    right = sum(subjects[guess] == name for guess, name in zip(best, names, strict=True))
    assert right / len(names) > 0.9


def test_the_tiny_reward_prefers_the_right_style_word(reward, emoji):
    images, styles, names = emoji
    features = reward.encode_images(images)
    words = sorted(set(styles))
    texts = torch.stack([reward.encode_texts([f"{word}. {name}" for name in names]) for word in words])
    best = (features * texts).sum(-1).argmax(0).tolist()
    right = sum(words[guess] == style for guess, style in zip(best, styles, strict=True))
    assert right / len(styles) > 0.7  # chance is 0.25


def test_a_directory_in_the_format_of_open_clip_gives_the_same_features(tmp_path, small_clip, small_config):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/small.json").write_text(json.dumps(small_config))
    save_file(small_clip.state_dict(), tmp_path / "own/small.safetensors")
    (tmp_path / "hub").mkdir()
    config = {"model_cfg": small_config, "preprocess_cfg": {"mean": [0.5]}}
    (tmp_path / "hub/open_clip_config.json").write_text(json.dumps(config))
    torch.save(small_clip.state_dict(), tmp_path / "hub/open_clip_pytorch_model.bin")
    own, hub = load_open_clip(tmp_path / "own"), load_open_clip(tmp_path / "hub")
    assert torch.equal(own.encode_texts(["red apple"]), hub.encode_texts(["red apple"]))
    torch.save({"weights": 3}, tmp_path / "hub/open_clip_pytorch_model.bin")
    with pytest.raises(ArtifactError, match="has no 'state_dict'"):
        load_open_clip(tmp_path / "hub")
