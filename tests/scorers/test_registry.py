import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from srpo_core.config import ScorerSettings
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.scorers import SCORERS, build_reward, load_reward, load_scorer

REWARDS = sorted(name for name, entry in SCORERS.items() if entry.differentiable)
TEXT_TOWERS = {
    "open_clip": "clip.transformer",
    "hps_v2": "clip.transformer",
    "pick_score": "clip.text_model",
    "clip_score": "clip.text_model",
}


@pytest.fixture(params=sorted(SCORERS))
def settings(request, directories):
    return ScorerSettings(scorer=request.param, path=str(directories[request.param]))


@pytest.fixture(params=REWARDS)
def reward_settings(request, directories):
    return ScorerSettings(scorer=request.param, path=str(directories[request.param]))


@pytest.fixture
def reward_model(reward_settings):
    return load_reward(reward_settings)


@pytest.fixture
def images():
    return torch.rand(3, 3, 72, 80, generator=torch.Generator().manual_seed(1))


def test_every_entry_loads_and_implements_its_protocol(settings):
    entry, scorer = SCORERS[settings.scorer], load_scorer(settings)
    images = torch.rand(2, 3, 64, 64)
    if entry.differentiable:
        assert scorer.encode_images(images).shape == scorer.encode_texts(["cat", "dog"]).shape
        assert isinstance(scorer.scale, float)
        assert scorer.scale > 0
    else:
        assert scorer.style_probabilities(images).shape == (2, len(scorer.styles))
        assert scorer.subject_logits(images).shape == (2, len(scorer.subjects))
        assert scorer.features(images).ndim == 2


def test_every_entry_names_the_files_that_it_reads(settings, tmp_path):
    """`srpo doctor` checks what `files` names: with those alone an entry loads, and without one of them it does not."""
    files = SCORERS[settings.scorer].files
    assert files is not None
    named = [path for path in files(Path(settings.path)) if path is not None]
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in named:
        shutil.copy(path, alone)
    copy = settings.model_copy(update={"path": str(alone)})
    load_scorer(copy)
    assert [path.name for path in files(alone) if path is not None] == [path.name for path in named]
    for path in named:
        if settings.scorer == "hps_v2" and path.suffix == ".json":
            continue  # without a configuration the published size is built
        (alone / path.name).unlink()
        with pytest.raises((ArtifactError, ConfigError)):
            load_scorer(copy)
        shutil.copy(path, alone)


def test_every_entry_has_a_licence_that_allows_use_in_a_product(settings):
    assert SCORERS[settings.scorer].licence in {"Apache-2.0", "MIT", "BSD-3-Clause"}


def test_every_entry_states_its_source_and_its_scores_are_in_its_range(settings):
    entry, scorer = SCORERS[settings.scorer], load_scorer(settings)
    low, high = entry.range
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if entry.differentiable:
        figures = scorer.scale * scorer.encode_images(images) @ scorer.encode_texts(["cat", "red apple"]).T
        # features have unit length, so a perfect match and its opposite reach the ends of the range
        assert scorer.scale <= high == -low
    else:
        figures = scorer.style_probabilities(images)
    assert low <= float(figures.min()) <= float(figures.max()) <= high
    assert len(entry.source.split()) >= 1
    assert entry.source.strip() == entry.source != ""


def test_a_score_is_the_cosine_times_the_scale_and_encodes_each_image_once(reward_model, images, monkeypatch):
    texts = ["red apple", "cat", "dog", "a", "b", "c"]
    encoded, encode = [], reward_model.encode_images
    monkeypatch.setattr(
        reward_model, "encode_images", lambda some: (encoded.append(len(some)), encode(some))[1]
    )
    scores = reward_model.score(images, texts)
    assert encoded == [len(images)]
    cosines = encode(images) @ reward_model.encode_texts(texts).T
    expected = [reward_model.scale * float(cosines[index % 3, index]) for index in range(6)]
    assert scores.tolist() == pytest.approx(expected, abs=1e-6 * reward_model.scale)
    assert torch.equal(scores[3:], reward_model.score(images, texts[3:]))


def test_features_have_unit_length_and_are_fp32(reward_model, images):
    for features in (reward_model.encode_images(images), reward_model.encode_texts(["red apple", "cat"])):
        assert features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=-1), torch.ones(len(features)), atol=1e-6)


def test_every_image_has_a_gradient_and_the_parameters_have_none(reward_model, images):
    images.requires_grad_()
    reward_model.encode_images(images)[:, 0].sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in reward_model.parameters())
    assert not reward_model.encode_texts(["red apple"]).requires_grad


def test_the_features_of_an_image_do_not_depend_on_its_batch(reward_model, images):
    together = reward_model.encode_images(images)
    alone = torch.cat([reward_model.encode_images(image[None]) for image in images])
    assert torch.allclose(together, alone, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0], together[1], rtol=0, atol=1e-4)


def test_the_features_of_a_text_do_not_depend_on_its_batch(reward_settings):
    alone = load_reward(reward_settings).encode_texts(["red apple"])[0]
    reward_model = load_reward(reward_settings)
    together = reward_model.encode_texts(["a much longer prompt of a cat", "red apple", "dog", "red apple"])
    assert torch.equal(together[1], alone)
    assert torch.equal(together[3], alone)
    assert not torch.equal(together[0], alone)


def test_the_text_tower_runs_once_per_distinct_text(reward_settings, reward_model):
    runs = []
    tower = reward_model.get_submodule(TEXT_TOWERS[reward_settings.scorer])
    tower.register_forward_hook(lambda *_: runs.append(1))
    first = reward_model.encode_texts(["Real. cat", "Oil. cat", "Real. cat"])
    again = reward_model.encode_texts(["Oil. cat", "Real. cat"])
    assert len(runs) == 2
    assert torch.equal(again, first[[1, 0]])


def test_a_text_that_is_too_long_is_truncated(reward_model):
    long, longer = reward_model.encode_texts(["word " * 100, "word " * 200])
    assert torch.equal(long, longer)


def test_only_a_differentiable_entry_can_be_loaded_as_a_reward(settings):
    if SCORERS[settings.scorer].differentiable:
        assert load_reward(settings).scale > 0
        return
    for load in (load_reward, build_reward):
        with pytest.raises(ConfigError, match=r"is not differentiable: a reward is one of .*open_clip"):
            load(settings)


def test_a_reward_built_without_weights_has_the_shapes_of_the_loaded_one(reward_settings, reward_model):
    with torch.device("meta"):
        built = build_reward(reward_settings)
        features = built.encode_images(torch.empty(2, 3, 64, 64))
    assert features.shape == reward_model.encode_images(torch.rand(2, 3, 64, 64)).shape
    built_shapes, loaded_shapes = (
        {name: parameter.shape for name, parameter in one.named_parameters()} for one in (built, reward_model)
    )
    assert built_shapes == loaded_shapes
    assert all(parameter.is_meta for parameter in built.parameters())


def test_a_reward_entry_without_build_is_refused():
    with pytest.raises(AssertionError, match="needs `build`"):
        replace(SCORERS["open_clip"], build=None)


@pytest.mark.parametrize("fault", ["missing", "surplus"])
def test_the_error_of_every_entry_names_a_missing_or_surplus_tensor(settings, tmp_path, fault):
    shutil.copytree(settings.path, tmp_path, dirs_exist_ok=True)
    (weights,) = tmp_path.glob("*.safetensors")
    tensors = load_file(weights)
    name = sorted(tensors)[0] if fault == "missing" else "extra.weight"
    if fault == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(1)
    save_file(tensors, weights)
    with pytest.raises(ArtifactError) as caught:
        load_scorer(settings.model_copy(update={"path": str(tmp_path)}))
    assert str(weights) in str(caught.value)
    assert f'"{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_of_every_entry_names_missing_weights(settings, tmp_path):
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        load_scorer(settings.model_copy(update={"path": str(tmp_path)}))


@pytest.mark.parametrize("load", [load_scorer, load_reward, build_reward])
def test_the_error_for_an_unknown_scorer_lists_the_known_ones(load):
    with pytest.raises(ConfigError, match=f"known are {', '.join(sorted(SCORERS))}"):
        load(ScorerSettings(scorer="hps_v3", path="nowhere"))


def test_the_registry_is_read_only():
    with pytest.raises(TypeError):
        SCORERS["mine"] = None
