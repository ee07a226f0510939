"""Scorers that are loaded or used wrongly fail a question with a known answer; those of the tiny family pass."""

from pathlib import Path

import pytest
import torch
from known_pairs import SUBJECTS, emoji

from srpo_core.config import ScorerSettings
from srpo_core.errors import GateError
from srpo_core.scorers import build_reward, load_scorer
from srpo_core.scorers.canaries import Example, require_answers
from srpo_core.scorers.known_images import drawn_examples

FAMILY = Path(__file__).resolve().parents[2] / "assets/tiny/family"
SETTINGS = {
    "reward": ScorerSettings(scorer="open_clip", path=str(FAMILY / "reward")),
    "judge_a": ScorerSettings(scorer="timm_judge", path=str(FAMILY / "judge_a")),
    "judge_b": ScorerSettings(scorer="style_subject_judge", path=str(FAMILY / "judge_b")),
}
CPU = torch.device("cpu")
NOISE = "fit its prompt better than noise"
STYLE = "real images must have a style"


@pytest.fixture(scope="module")
def examples():
    images = {name: decoded(content) for name, content in emoji().items()}
    return [Example(name, images[name], images[SUBJECTS[index - 1]]) for index, name in enumerate(SUBJECTS)]


def decoded(content):
    import io

    from PIL import Image

    from srpo_core.data.tables import to_tensor

    return to_tensor(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def drawn():
    return drawn_examples()


@pytest.fixture
def scorer(request):
    return load_scorer(SETTINGS[request.param])


@pytest.mark.parametrize("scorer", SETTINGS, indirect=True)
def test_a_scorer_of_the_tiny_family_answers_every_question(scorer, examples):
    require_answers("x", scorer, examples, CPU)


@pytest.mark.parametrize("scorer", SETTINGS, indirect=True)
def test_a_scorer_of_the_tiny_family_answers_every_question_about_the_images_of_the_package(scorer, drawn):
    assert len(drawn) == 16
    assert len({one.prompt for one in drawn}) == 16
    require_answers("x", scorer, drawn, CPU)


def of_another_image(reward):
    encode, before = reward.encode_images, []

    def shifted(images):
        before.append(encode(images))
        return before[-2] if len(before) > 1 else before[-1]

    reward.encode_images = shifted


def images_for_texts(reward):
    encode = reward.encode_texts
    reward.encode_texts = lambda texts: encode(["a photo" for _ in texts])


def constant(reward):
    encode = reward.encode_images
    reward.encode_images = lambda images: torch.nn.functional.normalize(torch.ones_like(encode(images)))


def inverted(reward):
    encode = reward.encode_images
    reward.encode_images = lambda images: -encode(images)


def inverted_colours(reward):
    """An image in [0, 255] where [0, 1] is expected, as a wrong preprocessing gives."""
    encode = reward.encode_images
    reward.encode_images = lambda images: encode(images * 255)


@pytest.mark.parametrize("images", ["examples", "drawn"])
@pytest.mark.parametrize("change", [of_another_image, images_for_texts, constant, inverted, inverted_colours])
def test_a_reward_that_is_used_wrongly_is_named_with_the_question_that_it_fails(change, images, request):
    examples = request.getfixturevalue(images)
    reward = load_scorer(SETTINGS["reward"])
    change(reward)
    with pytest.raises(
        GateError, match=r"^the scorer mine fails a question with a known answer: an image must"
    ) as caught:
        require_answers("mine", reward, examples, CPU)
    assert "\n" not in str(caught.value)
    assert f"of {len(examples)} prompts" in str(caught.value)


@pytest.mark.parametrize(("images", "seed"), [*(("examples", seed) for seed in range(4)), ("drawn", 0)])
def test_a_reward_with_random_weights_fails(images, seed, request):
    torch.manual_seed(seed)
    with pytest.raises(GateError, match="fails a question with a known answer"):
        require_answers("x", build_reward(SETTINGS["reward"]).eval(), request.getfixturevalue(images), CPU)


@pytest.mark.parametrize("scorer", ["judge_a", "judge_b"], indirect=True)
@pytest.mark.parametrize(("head", "question"), [("a", STYLE), ("b", NOISE)])
def test_a_judge_with_a_head_of_zeros_fails(scorer, head, question, examples):
    for weights in getattr(scorer, head).parameters():
        weights.zero_()
    with pytest.raises(GateError, match=question):
        require_answers("x", scorer, examples, CPU)


@pytest.mark.parametrize("scorer", ["judge_a", "judge_b"], indirect=True)
def test_a_judge_whose_subjects_are_in_another_order_fails(scorer, examples):
    scorer.subjects = scorer.subjects[1:] + scorer.subjects[:1]
    with pytest.raises(GateError, match="fails a question with a known answer"):
        require_answers("x", scorer, examples, CPU)


@pytest.mark.parametrize("scorer", SETTINGS, indirect=True)
def test_a_score_that_is_not_finite_is_an_error_and_never_a_low_score(scorer, examples):
    for weights in scorer.parameters():
        weights.fill_(torch.nan)
    with pytest.raises(GateError, match=r"no finite score|fails a question"):
        require_answers("x", scorer, examples, CPU)


def test_an_exception_of_a_scorer_is_not_turned_into_a_score(examples):
    reward = load_scorer(SETTINGS["reward"])

    def refuse(images):
        raise ConnectionError("the service is down")

    reward.encode_images = refuse
    with pytest.raises(ConnectionError, match="the service is down"):
        require_answers("x", reward, examples, CPU)


def test_a_judge_that_knows_none_of_the_prompts_is_reported_and_its_styles_are_still_asked(examples, caplog):
    judge = load_scorer(SETTINGS["judge_a"])
    unknown = [Example(f"{one.prompt} on a shelf", one.preferred, one.rejected) for one in examples]
    require_answers("mine", judge, unknown, CPU)
    assert "styles were not checked" not in caplog.text
    assert "mine: no prompt of the held-out pairs names a subject that it knows" in caplog.text
    for weights in judge.a.parameters():
        weights.zero_()
    with pytest.raises(GateError, match=STYLE):
        require_answers("mine", judge, unknown, CPU)
