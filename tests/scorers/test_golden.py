"""Parity of the scorers with the reference's own functions, from files, as a user loads them.

The vectors in tests/golden are a subset; set SRPO_GOLDEN_DIR to compare with others of the same form.
"""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srpo_core.scorers.hps_v2 import load_hps_v2
from srpo_core.scorers.pick_score import load_pick_score
from srpo_core.scorers.preprocessing import CLIP_MEAN, CLIP_STD, fit, normalize

GOLDEN = Path(os.environ.get("SRPO_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
JSON = json.loads((GOLDEN / "golden.json").read_text())
SIZES = ("up", "down", "mixed")
TEXTS = ("pos", "neg", "odd", "long")
PREFIX = {"hps_v2": "hps", "pick_score": "ps"}
RELATIVE = {"hps_v2": "hps_srp_cfg", "pick_score": "pickscore_srp_cfg"}
with safe_open(GOLDEN / "golden.safetensors", "pt") as file:
    NAMES = set(file.keys())
# the subset leaves some pictures of training out for their size
PICTURES = [
    (case, index)
    for case, about in JSON["cases"].items()
    for index in range(len(about["branches"]))
    if f"{case}.b{index}.image" in NAMES
]
FEATURE = 1e-6
REWARD = 1e-6


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="module")
def scorers(tensors, tmp_path_factory):
    """Both scorers, loaded from directories in the form in which their weights are published."""
    root = tmp_path_factory.mktemp("golden")
    for name in PREFIX:
        (root / name).mkdir()
    configs = JSON["configs"]
    (root / "hps_v2/small.json").write_text(json.dumps(configs["hps_open_clip"]))
    torch.save({"state_dict": _state(tensors, "model.hps.")}, root / "hps_v2/hps.pt")
    (root / "pick_score/config.json").write_text(
        json.dumps(configs["pickscore_hf_clip"] | {"model_type": "clip"})
    )
    save_file(_state(tensors, "model.pickscore."), root / "pick_score/model.safetensors")
    return {"hps_v2": load_hps_v2(root / "hps_v2"), "pick_score": load_pick_score(root / "pick_score")}


def _state(tensors, prefix):
    """A model's weights; where its token table is cut to the rows in use, the other rows are zero."""
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if "token_rows" in tensors:
        (name,) = (name for name in state if name.endswith("token_embedding.weight"))
        table = torch.zeros(JSON["configs"]["hps_open_clip"]["text_cfg"]["vocab_size"], state[name].shape[1])
        table[tensors["token_rows"]] = state[name]
        state[name] = table
    return state


def image_of(tensors, size):
    return (tensors[f"comp.hps_pre.{size}.in_uint8"].float() / 255)[None]


def text_of(name):
    case = JSON["scores"]["up"]
    return {
        "pos": case["prompt"],
        "neg": case["neg"],
        "odd": JSON["captions"][2],
        "long": JSON["captions"][3],
    }[name]


def relative_reward(scorer, image, prompt, negative, k):
    p, n = scorer.encode_texts([prompt, negative])
    return float(scorer.scale * (scorer.encode_images(image) @ ((1 + k) * p - n)).sum())


@pytest.mark.parametrize("size", SIZES)
def test_the_gradient_of_the_preprocessing_is_the_references(tensors, size):
    image = image_of(tensors, size).requires_grad_()
    pixels = normalize(fit(image, 224), CLIP_MEAN, CLIP_STD)
    if f"comp.hps_pre.{size}.out" in tensors:  # left out of the subset for its size
        assert torch.allclose(pixels[0], tensors[f"comp.hps_pre.{size}.out"], rtol=0, atol=1e-5)
    weights = torch.cos(0.01 * torch.arange(pixels.numel()))
    (gradient,) = torch.autograd.grad((pixels.flatten() * weights).sum(), image)
    flat = gradient.double().flatten()
    probe = (flat * torch.cos(0.37 * torch.arange(len(flat), dtype=torch.float64) + 0.1)).sum()
    expected = JSON["hps_pre_grad"][size]
    assert math.isclose(flat.norm(), expected["norm"], rel_tol=1e-5)
    assert math.isclose(probe, expected["probe"], abs_tol=1e-5 * expected["norm"])


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_are_the_references(tensors, scorers, name):
    assert torch.equal(scorers["hps_v2"]._tokenize([text_of(name)]), tensors[f"comp.text.{name}.tokens"])
    assert scorers["pick_score"]._tokenize(text_of(name)).input_ids == JSON["pickscore_tokens"][name]


@pytest.mark.parametrize("scorer", PREFIX)
@pytest.mark.parametrize("name", TEXTS)
def test_text_features_are_the_references(tensors, scorers, scorer, name):
    features = scorers[scorer].encode_texts([text_of(name)])
    expected = tensors[f"comp.text.{name}.{PREFIX[scorer]}_feat"]
    assert torch.allclose(features, expected, rtol=0, atol=FEATURE)


@pytest.mark.parametrize("scorer", PREFIX)
@pytest.mark.parametrize("size", SIZES)
def test_image_features_and_relative_rewards_are_the_references(tensors, scorers, scorer, size):
    case, image = JSON["scores"][size], image_of(tensors, size)
    expected = tensors[f"comp.score.{size}.{PREFIX[scorer]}_image_feat"]
    assert torch.allclose(scorers[scorer].encode_images(image), expected, rtol=0, atol=FEATURE)
    ours = relative_reward(scorers[scorer], image, case["prompt"], case["neg"], case["k"])
    assert ours == pytest.approx(case[RELATIVE[scorer]][0], abs=REWARD)


@pytest.mark.parametrize("size", SIZES)
def test_the_plain_score_of_hps_is_the_references(tensors, scorers, size):
    case = JSON["scores"][size]
    image = scorers["hps_v2"].encode_images(image_of(tensors, size))
    score = float(image @ scorers["hps_v2"].encode_texts([case["prompt"]])[0])
    assert score == pytest.approx(case["hps_srp"][0], abs=REWARD)


def test_the_vectors_hold_pictures_of_training():
    assert PICTURES


@pytest.mark.parametrize(("case", "index"), PICTURES)
def test_rewards_of_the_pictures_of_training_are_the_references(tensors, scorers, case, index):
    scorer = scorers["pick_score" if case.startswith("ps.") else "hps_v2"]
    branch = JSON["cases"][case]["branches"][index]
    (prompt,), (negative,), k = branch["prompt"], branch["neg_prompt"], branch["k"]
    ours = relative_reward(scorer, tensors[f"{case}.b{index}.image"], prompt, negative, k)
    # errors of features grow with scale·|1 + k|, which is 61 in the case with extreme discounts
    assert ours == pytest.approx(branch["reward"][0], abs=REWARD * max(1.0, scorer.scale * abs(1 + k)))
