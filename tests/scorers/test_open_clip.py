import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.errors import ArtifactError
from srpo_core.scorers import open_clip as module
from srpo_core.scorers.open_clip import HPS_FILE, OpenClipReward, load_hps, load_open_clip
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize

GOLDEN = Path(__file__).resolve().parents[3] / "shared/golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the full golden vectors are not here")
SIZES = ("up", "down", "mixed")


@pytest.fixture
def directory(tmp_path, small_clip, small_config):
    (tmp_path / "small.json").write_text(json.dumps(small_config))
    save_file(small_clip.state_dict(), tmp_path / "small.safetensors")
    return tmp_path


@pytest.fixture
def small(directory):
    return load_open_clip(directory)


def pictures(count=3, size=40):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_features_have_unit_length_and_are_fp32(small):
    for features in (small.encode_images(pictures()), small.encode_texts(["red apple", "cat"])):
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-6)


def test_a_reward_is_a_cosine_without_logit_scale(small):
    assert small.scale == 1.0


def test_gradients_flow_to_the_images_and_to_nothing_else(small):
    images = pictures().requires_grad_()
    small.encode_images(images)[:, 0].sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in small.parameters())
    assert not small.encode_texts(["red apple"]).requires_grad


def test_a_step_along_the_gradient_raises_the_reward_by_its_slope(small):
    text = small.encode_texts(["red apple"])[0]
    image = pictures(1).requires_grad_()
    score = (small.encode_images(image) @ text).sum()
    (gradient,) = torch.autograd.grad(score, image)
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        rise = ((small.encode_images(image + step) - small.encode_images(image - step)) @ text).item()
    assert math.isclose(rise, 0.1 * gradient.norm(), rel_tol=0.02)


def test_a_text_has_the_same_features_in_any_company(directory):
    alone = load_open_clip(directory).encode_texts(["red apple"])[0]
    small = load_open_clip(directory)
    together = small.encode_texts(["a much longer prompt of a cat", "red apple", "dog", "red apple"])
    assert torch.equal(together[1], alone)
    assert torch.equal(together[3], alone)
    assert not torch.equal(together[0], alone)


def test_a_text_is_encoded_once_and_the_memory_of_texts_is_bounded(small, monkeypatch):
    calls = []
    encode = small.clip.encode_text
    monkeypatch.setattr(small.clip, "encode_text", lambda tokens: calls.append(1) or encode(tokens))
    monkeypatch.setattr(module, "MAX_CACHED_TEXTS", 2)
    first = small.encode_texts(["a", "a", "b"])
    assert len(calls) == 2
    small.encode_texts(["c"])  # pushes the oldest, "a", out
    again = small.encode_texts(["a"])
    assert len(calls) == 4
    assert torch.equal(first[0], again[0])


def test_the_form_of_hpsv2_gives_the_same_features_as_safetensors(directory, small, small_config):
    state = load_file(directory / "small.safetensors")
    torch.save({"state_dict": state, "epoch": 1}, directory / HPS_FILE)
    hps = load_hps(directory / HPS_FILE, small_config)
    assert torch.equal(hps.encode_images(pictures()), small.encode_images(pictures()))
    assert torch.equal(hps.encode_texts(["red apple"]), small.encode_texts(["red apple"]))


def test_a_directory_with_only_the_hps_file_is_read_as_vit_h_14(directory, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "load_hps", lambda path, config: asked.append((path, config)))
    (directory / "small.json").unlink()
    (directory / HPS_FILE).touch()
    load_open_clip(directory)
    ((path, config),) = asked
    assert path == directory / HPS_FILE
    assert (config["embed_dim"], config["vision_cfg"]["layers"], config["vision_cfg"]["patch_size"]) == (
        1024,
        32,
        14,
    )


def one_line(caught, *parts):
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(tmp_path / "nowhere")
    one_line(caught, tmp_path / "nowhere", HPS_FILE)


def test_two_configurations_are_ambiguous(directory):
    (directory / "other.json").write_text("{}")
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(directory)
    one_line(caught, directory, "found 2")


def test_missing_weights_are_named(directory):
    (directory / "small.safetensors").unlink()
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(directory)
    one_line(caught, directory / "small.safetensors", "missing")


def test_weights_cut_short_are_named(directory):
    path = directory / "small.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(directory)
    one_line(caught, path, "damaged")


def test_weights_of_another_architecture_are_named(directory, small_config):
    wider = small_config | {"embed_dim": 24}
    (directory / "small.json").write_text(json.dumps(wider))
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(directory)
    one_line(caught, directory / "small.safetensors", "another model")


@pytest.mark.parametrize("text", ["{", "[]", '{"embed_dim": 16}', '{"hf_model": 1}'])
def test_a_broken_configuration_is_named(directory, text):
    (directory / "small.json").write_text(text)
    with pytest.raises(ArtifactError) as caught:
        load_open_clip(directory)
    one_line(caught, directory / "small.json")


@pytest.mark.parametrize("content", [b"", b"no pickle", b"PK\x03\x04broken"])
def test_a_broken_hps_file_is_named(tmp_path, small_config, content):
    (tmp_path / HPS_FILE).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load_hps(tmp_path / HPS_FILE, small_config)
    one_line(caught, tmp_path / HPS_FILE)


def test_a_pickle_that_runs_code_is_refused(tmp_path, small_config):
    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Runs()}, tmp_path / HPS_FILE)
    with pytest.raises(ArtifactError):
        load_hps(tmp_path / HPS_FILE, small_config)
    assert not (tmp_path / "ran").exists()


def test_the_tiny_reward_finds_the_subject_of_real_pictures(reward, emoji):
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
    assert right / len(styles) > 0.85


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "golden.safetensors"), json.loads((GOLDEN / "golden.json").read_text())


@pytest.fixture(scope="module")
def golden_reward(golden):
    from open_clip import CLIP

    tensors, description = golden
    clip = CLIP(**description["configs"]["hps_open_clip"])
    prefix = "model.hps."
    clip.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    return OpenClipReward(clip, image_size=224, context_length=77)


def golden_image(golden, size):
    return (golden[0][f"comp.hps_pre.{size}.in_uint8"].float() / 255)[None]


@needs_golden
@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_and_its_gradient_are_the_reference_s(golden, size):
    tensors, description = golden
    image = golden_image(golden, size).requires_grad_()
    pixels = normalize(fit(image, 224), CLIP_MEAN, CLIP_STD)
    assert torch.allclose(pixels[0], tensors[f"comp.hps_pre.{size}.out"], rtol=0, atol=1e-5)
    weights = torch.cos(0.01 * torch.arange(pixels.numel()))
    (gradient,) = torch.autograd.grad((pixels.flatten() * weights).sum(), image)
    flat = gradient.double().flatten()
    probe = (flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum()
    expected = description["hps_pre_grad"][size]
    assert math.isclose(flat.norm(), expected["norm"], rel_tol=1e-5)
    assert math.isclose(probe, expected["probe"], abs_tol=1e-5 * expected["norm"])


@needs_golden
@pytest.mark.parametrize("size", SIZES)
def test_features_and_scores_are_the_reference_s(golden, golden_reward, size):
    tensors, description = golden
    case = description["scores"][size]
    image = golden_reward.encode_images(golden_image(golden, size))
    prompt, negative = golden_reward.encode_texts([case["prompt"], case["neg"]])
    assert torch.allclose(image, tensors[f"comp.score.{size}.hps_image_feat"], rtol=0, atol=1e-6)
    assert math.isclose(image @ prompt, case["hps_srp"][0], abs_tol=1e-6)
    relative = image @ ((1 + case["k"]) * prompt - negative)
    assert math.isclose(relative, case["hps_srp_cfg"][0], abs_tol=1e-6)


@needs_golden
@pytest.mark.parametrize(("text", "caption"), [("odd", 2), ("long", 3)])
def test_odd_and_too_long_texts_have_the_reference_s_features(golden, golden_reward, text, caption):
    tensors, description = golden
    features = golden_reward.encode_texts([description["captions"][caption]])
    assert torch.allclose(features, tensors[f"comp.text.{text}.hps_feat"], rtol=0, atol=1e-6)
