"""Parity of the scorers with the functions of the reference. The scorers are loaded from files, as by a user.

The vectors in tests/golden are a subset. The full set is compared too if it is available. SRPO_GOLDEN_DIR replaces
them with another set. A test is skipped with a message if a set lacks its vectors.
"""

import json
import math
from functools import cache

import pytest
import torch
from golden_vectors import Golden, directories, reward_tolerance
from safetensors.torch import save_file

from srpo_core.scorers.hps_v2 import load_hps_v2
from srpo_core.scorers.pick_score import load_pick_score
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize

SIZES = ("up", "down", "mixed")
TEXTS = ("pos", "neg", "odd", "long")
PREFIX = {"hps_v2": "hps", "pick_score": "ps"}
RELATIVE = {"hps_v2": "hps_srp_cfg", "pick_score": "pickscore_srp_cfg"}
FEATURE = 1e-6
SCORE = 1e-6

golden_of = cache(Golden)


def has_entry(golden, what):
    """Return whether a set has a tensor or a JSON entry of this name."""
    return what in golden or what in golden.json


def of_set(directory, *values, lack=None):
    """Return the parameters of a test on one set; the test is skipped if the set lacks something."""
    marks = [pytest.mark.skip(reason=f"the vectors in {directory.name} lack {lack}")] if lack else []
    name = "-".join(map(str, [golden_of(directory).name, *values]))
    return pytest.param(directory, *values, id=name, marks=marks)


def every(names, needed):
    """Return each name on each set; `needed(name)` lists the entries that the set must have."""
    return [
        of_set(
            directory,
            name,
            lack=next((what for what in needed(name) if not has_entry(golden_of(directory), what)), None),
        )
        for directory in directories()
        for name in names
    ]


def images():
    """Return the training images of each set; the subset omits some because of their size."""
    return [
        of_set(directory, case, index, lack=None if "k" in branch else "the discount of a branch")
        for directory in directories()
        for case, about in golden_of(directory).cases.items()
        for index, branch in enumerate(about["branches"])
        if f"{case}.b{index}.image" in golden_of(directory)
    ]


every_size = pytest.mark.parametrize(
    ("directory", "size"), every(SIZES, lambda size: [f"comp.hps_pre.{size}.in_uint8", "scores"])
)
every_text = pytest.mark.parametrize(
    ("directory", "name"), every(TEXTS, lambda name: [f"comp.text.{name}.tokens", "pickscore_tokens"])
)
every_image = pytest.mark.parametrize(("directory", "case", "index"), images())


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Return a function that loads the scorers of a set from directories in the published format."""

    @cache
    def load(directory):
        golden, root = golden_of(directory), tmp_path_factory.mktemp("golden")
        configs = golden.json["configs"]
        (root / "hps_v2").mkdir()
        (root / "hps_v2/small.json").write_text(json.dumps(configs["hps_open_clip"]))
        torch.save({"state_dict": golden.state("model.hps.")}, root / "hps_v2/hps.pt")
        found = {"hps_v2": load_hps_v2(root / "hps_v2")}
        if "pickscore_hf_clip" in configs:  # a set of another seed has no PickScore
            (root / "pick_score").mkdir()
            config = configs["pickscore_hf_clip"] | {"model_type": "clip"}
            (root / "pick_score/config.json").write_text(json.dumps(config))
            save_file(golden.state("model.pickscore."), root / "pick_score/model.safetensors")
            found["pick_score"] = load_pick_score(root / "pick_score")
        return found

    return load


def image_of(golden, size):
    return (golden[f"comp.hps_pre.{size}.in_uint8"].float() / 255)[None]


def text_of(golden, name):
    case, captions = golden.json["scores"]["up"], golden.json["captions"]
    return {"pos": case["prompt"], "neg": case["neg"], "odd": captions[2], "long": captions[3]}[name]


def relative_reward(scorer, image, prompt, negative, k):
    p, n = scorer.encode_texts([prompt, negative])
    return float(scorer.scale * (scorer.encode_images(image) @ ((1 + k) * p - n)).sum())


@every_size
def test_the_gradient_of_the_preprocessing_equals_the_references(directory, size):
    golden = golden_of(directory)
    image = image_of(golden, size).requires_grad_()
    pixels = normalize(fit(image, 224), CLIP_MEAN, CLIP_STD)
    if f"comp.hps_pre.{size}.out" in golden:  # omitted from the subset because of its size
        assert torch.allclose(pixels[0], golden[f"comp.hps_pre.{size}.out"], rtol=0, atol=1e-5)
    weights = torch.cos(0.01 * torch.arange(pixels.numel()))
    (gradient,) = torch.autograd.grad((pixels.flatten() * weights).sum(), image)
    flat = gradient.double().flatten()
    probe = (flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum()
    expected = golden.json["hps_pre_grad"][size]
    assert math.isclose(flat.norm(), expected["norm"], rel_tol=1e-5)
    assert math.isclose(probe, expected["probe"], abs_tol=1e-5 * expected["norm"])


@every_text
def test_tokens_equal_the_references(scorers, directory, name):
    golden, ours = golden_of(directory), scorers(directory)
    text = text_of(golden, name)
    assert torch.equal(ours["hps_v2"]._tokenize([text]), golden[f"comp.text.{name}.tokens"])
    assert ours["pick_score"]._tokenize(text).input_ids == golden.json["pickscore_tokens"][name]


@pytest.mark.parametrize("scorer", PREFIX)
@every_text
def test_text_features_equal_the_references(scorers, scorer, directory, name):
    golden = golden_of(directory)
    features = scorers(directory)[scorer].encode_texts([text_of(golden, name)])
    expected = golden[f"comp.text.{name}.{PREFIX[scorer]}_feat"]
    assert torch.allclose(features, expected, rtol=0, atol=FEATURE)


@pytest.mark.parametrize("scorer", PREFIX)
@every_size
def test_image_features_and_relative_rewards_equal_the_references(scorers, scorer, directory, size):
    golden, ours = golden_of(directory), scorers(directory)[scorer]
    case, image = golden.json["scores"][size], image_of(golden, size)
    expected = golden[f"comp.score.{size}.{PREFIX[scorer]}_image_feat"]
    assert torch.allclose(ours.encode_images(image), expected, rtol=0, atol=FEATURE)
    reward = relative_reward(ours, image, case["prompt"], case["neg"], case["k"])
    assert reward == pytest.approx(case[RELATIVE[scorer]][0], abs=reward_tolerance(ours, case["k"]))


@every_size
def test_the_hps_score_without_control_words_equals_the_references(scorers, directory, size):
    golden, ours = golden_of(directory), scorers(directory)["hps_v2"]
    case = golden.json["scores"][size]
    image = ours.encode_images(image_of(golden, size))
    score = float(image @ ours.encode_texts([case["prompt"]])[0])
    assert score == pytest.approx(case["hps_srp"][0], abs=SCORE)


@pytest.mark.parametrize("directory", directories(), ids=lambda path: golden_of(path).name)
def test_the_vectors_contain_training_images(directory):
    assert any(image.values[0] == directory for image in images())


@every_image
def test_rewards_of_the_training_images_equal_the_references(scorers, directory, case, index):
    golden = golden_of(directory)
    scorer = scorers(directory)["pick_score" if case.startswith("ps.") else "hps_v2"]
    branch = golden.cases[case]["branches"][index]
    (prompt,), (negative,), k = branch["prompt"], branch["neg_prompt"], branch["k"]
    ours = relative_reward(scorer, golden[f"{case}.b{index}.image"], prompt, negative, k)
    assert ours == pytest.approx(branch["reward"][0], abs=reward_tolerance(scorer, k))
