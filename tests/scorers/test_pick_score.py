import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.scorers.pick_score import load_pick_score

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
TEXTS = ["Real. red apple", "Oil. a cat"]


@pytest.fixture
def directory(tmp_path, small_pick_score):
    small_pick_score.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def reward(directory):
    return load_pick_score(directory)


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def padded_tokens(texts):
    """Return tokens like a processor of transformers: padded with the end token, and with a mask."""
    from open_clip import SimpleTokenizer

    tokens = SimpleTokenizer(context_length=16)(texts)
    mask = (tokens != 0).long()
    return {"input_ids": tokens.masked_fill(mask == 0, 49407), "attention_mask": mask}


def edit(path, **changes):
    config = json.loads(path.read_text())
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (config[part] if part else config)[key] = value
    path.write_text(json.dumps(config))


def test_the_score_equals_the_formula_on_the_model_of_transformers(directory, reward, images):
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(directory).eval()
    with torch.no_grad():
        i = clip.get_image_features((images - MEAN) / STD).pooler_output
        t = clip.get_text_features(**padded_tokens(TEXTS)).pooler_output
        logits = clip(pixel_values=(images - MEAN) / STD, **padded_tokens(TEXTS)).logits_per_image
    i, t = i / i.norm(dim=1, keepdim=True), t / t.norm(dim=1, keepdim=True)
    assert torch.allclose(reward.encode_images(images), i, rtol=0, atol=1e-6)
    assert torch.allclose(reward.encode_texts(TEXTS), t, rtol=0, atol=1e-6)
    ours = 20 * reward.scale * reward.encode_images(images) @ reward.encode_texts(TEXTS).T
    assert torch.allclose(ours, clip.logit_scale.exp() * i @ t.T, rtol=0, atol=1e-5)
    assert torch.allclose(ours, logits, rtol=0, atol=1e-5)


def test_the_scale_is_the_logit_scale_of_the_weights_divided_by_the_references_20(directory, reward):
    assert reward.scale == pytest.approx(math.exp(2.6592) / 20, rel=1e-6)  # CLIP's initial logit_scale
    state = load_file(directory / "model.safetensors")
    save_file(state | {"logit_scale": torch.tensor(math.log(100.0))}, directory / "model.safetensors")
    assert load_pick_score(directory).scale == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize(("height", "width"), [(90, 70), (20, 45)])
def test_an_image_of_another_size_is_resized_and_center_cropped(reward, height, width):
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(2))
    scale = 32 / min(height, width)
    size = (int(height * scale), int(width * scale))
    resized = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
    top, left = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
    with torch.no_grad():
        pixels = (resized[:, :, top : top + 32, left : left + 32] - MEAN) / STD
        expected = reward.clip.get_image_features(pixels).pooler_output
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert torch.allclose(reward.encode_images(images), expected, rtol=0, atol=1e-5)


def test_a_step_along_the_gradient_raises_the_reward_by_the_predicted_amount(reward, images):
    text = reward.encode_texts(TEXTS)[0]
    image = images[:1].requires_grad_()
    score = reward.scale * (reward.encode_images(image) @ text).sum()
    (gradient,) = torch.autograd.grad(score, image)
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        change = reward.encode_images(image + step) - reward.encode_images(image - step)
    rise = float(reward.scale * (change @ text))
    assert rise == pytest.approx(0.02 * float(gradient.norm()), rel=0.02)


def test_texts_are_cleaned_as_in_transformers_which_keeps_html_entities(reward):
    texts = reward.encode_texts(["Cat  & DOG", "cat & dog", "cat &amp; dog"])
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[1], texts[2])


def test_a_long_text_is_truncated_and_keeps_its_end_token(reward):
    tokens = reward._tokenize("word " * 100).input_ids
    assert len(tokens) == 16
    assert (tokens[0], tokens[-1]) == (49406, 49407)


def test_old_configurations_with_a_wrong_end_token_give_the_same_features(directory, reward):
    """Before transformers 4.31, CLIP configurations had the end token 2. PickScore_v1 is older than that."""
    edit(directory / "config.json", text_config__eos_token_id=2)
    old = load_pick_score(directory)
    assert old.clip.config.text_config.eos_token_id == 2
    assert torch.equal(old.encode_texts(TEXTS), reward.encode_texts(TEXTS))


def test_position_ids_in_old_files_do_not_count_as_surplus_tensors(directory, reward, images):
    counted = {
        "text_model.embeddings.position_ids": torch.arange(16)[None],
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    path = directory / "model.safetensors"
    save_file(load_file(path) | counted, path)
    assert torch.equal(load_pick_score(directory).encode_images(images), reward.encode_images(images))


def test_half_precision_weights_are_converted_to_fp32(directory):
    path = directory / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert {parameter.dtype for parameter in load_pick_score(directory).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_the_error_names_a_missing_file(directory, refusal, name):
    (directory / name).unlink()
    assert f"{directory / name} is missing" in refusal(load_pick_score, directory)


def test_the_error_names_weights_of_another_width(directory, refusal):
    edit(directory / "config.json", projection_dim=24)
    line = refusal(load_pick_score, directory)
    assert str(directory / "model.safetensors") in line
    assert "another model" in line


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"model_type": "siglip"}',
        '{"model_type": "clip", "text_config": 3}',
        '{"model_type": "clip", "projection_dim": "wide"}',
        '{"model_type": "clip", "vision_config": {"hidden_size": 10, "num_attention_heads": 3}}',
    ],
)
def test_the_error_names_a_broken_configuration(directory, refusal, text):
    (directory / "config.json").write_text(text)
    assert str(directory / "config.json") in refusal(load_pick_score, directory)
