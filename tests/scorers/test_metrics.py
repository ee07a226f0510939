import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from srpo_core.config import ControlWords, RewardSettings, ScorerSettings
from srpo_core.errors import ConfigError, DataError
from srpo_core.scorers.cosine import cosine_score
from srpo_core.scorers.metrics import (
    METRICS,
    MetricContext,
    check_metrics,
    find_metric,
    finish,
    measure,
    metric_names,
)

INK_OVER_3D = ControlWords.of(wanted=["Ink"], unwanted=["3D"])


class TwoTowers:
    """A reward whose image features are the mean colour, and whose text features are given."""

    scale = 3.0

    def __init__(self, texts):
        self.texts = texts

    def to(self, device):
        return self

    def score(self, images, texts):
        return cosine_score(self, images, texts)

    def encode_images(self, images):
        return images.mean((2, 3))

    def encode_texts(self, texts):
        return torch.tensor([self.texts[text] for text in texts])


class ColourJudge:
    """A judge whose features are the mean colour; subject logits are given."""

    styles = ("Red", "Green", "Blue")
    subjects = ("cat", "black cat", "dog", "owl", "bear", "lion", "Cat face")

    def __init__(self, logits=None):
        self.logits = logits

    def features(self, images):
        return images.mean((2, 3))

    def style_probabilities(self, images):
        return self.features(images)

    def subject_logits(self, images):
        return torch.tensor([self.logits] * len(images))


@dataclass
class Given:
    """A metric context with given scorers."""

    control_words: ControlWords
    reward: object = None
    judge: object = None
    scorers: object = None
    scorer_settings: dict = field(default_factory=dict)
    device: str = "cpu"
    judge_settings: ScorerSettings = field(
        default_factory=lambda: ScorerSettings(scorer="style_subject_judge", path="nowhere")
    )

    @property
    def classifier(self):
        return self.judge

    @property
    def text_judge(self):
        return self.judge


def plain(*colours):
    return torch.tensor(colours).view(-1, 3, 1, 1).expand(-1, 3, 4, 4)


def figures(name, images, prompt, context):
    """Measure the images; a metric that compares with the base gets them as the base's, too, and as a second prompt's."""
    found = measure([name], images, prompt, context)[name]
    if find_metric(name, context.scorer_settings).beside_base is None:
        return finish(name, found, context).tolist()
    both = torch.cat([found, found.flip(0)])
    prompts = torch.arange(2).repeat_interleave(len(images))
    return finish(name, both, context, base=both, prompts=prompts)[: len(images)].tolist()


@pytest.fixture
def tiny(family):
    return MetricContext(
        [RewardSettings(scorer="open_clip", path=str(family / "reward"), weight=1)],
        ScorerSettings(scorer="style_subject_judge", path=str(family / "judge_b")),
        INK_OVER_3D,
    )


@pytest.fixture
def by_style(emoji):
    """Return the name and the images by style of one subject."""
    images, styles, names = emoji
    rows = [row for row, name in enumerate(names) if name == names[0]]
    return names[0], {styles[row]: images[row] for row in rows}


def test_reward_is_the_scaled_product_of_image_and_prompt_features():
    context = Given(INK_OVER_3D, TwoTowers({"cat": [1.0, 0.0, 0.5]}))
    assert figures("reward", plain([0.2, 0.9, 0.4], [0.0, 1.0, 0.0]), "cat", context) == pytest.approx(
        [1.2, 0]
    )


def test_relative_reward_is_the_mean_over_all_pairs_of_control_words():
    texts = {"A. cat": [1.0, 0, 0], "B. cat": [0, 1.0, 0], "C. cat": [0, 0, 1.0]}
    context = Given(ControlWords.of(wanted=["A", "B"], unwanted=["C"]), TwoTowers(texts))
    image = plain([0.9, 0.5, 0.1])
    pairs = [3 * (0.9 - 0.1), 3 * (0.5 - 0.1)]
    assert figures("relative_reward", image, "cat", context) == pytest.approx([sum(pairs) / 2])


def test_control_words_are_weighted_by_how_often_they_are_trained():
    texts = {"A. cat": [1.0, 0, 0], "B. cat": [0, 1.0, 0], "C. cat": [0, 0, 1.0]}
    words = ControlWords.model_validate(
        {
            "use": "own",
            "choice": "in_turn",
            "library": {"own": {"wanted": {"A": 3, "B": 1}, "unwanted": {"C": 2}}},
        }
    )
    found = figures("relative_reward", plain([0.9, 0.5, 0.1]), "cat", Given(words, TwoTowers(texts)))
    assert found == pytest.approx([3 * (0.75 * 0.9 + 0.25 * 0.5 - 0.1)])


def test_exchanging_wanted_and_unwanted_words_reverses_the_sign_of_the_relative_reward(tiny, by_style):
    name, inputs = by_style
    images = torch.stack([inputs["Ink"], inputs["3D"]])
    exchanged = MetricContext(
        tiny.reward_settings, tiny.judge_settings, ControlWords.of(wanted=["3D"], unwanted=["Ink"])
    )
    ink, three_d = figures("relative_reward", images, name, tiny)
    assert ink > 0 > three_d
    assert figures("relative_reward", images, name, exchanged) == pytest.approx([-ink, -three_d], abs=1e-6)


def test_judge_wanted_is_the_total_probability_of_all_wanted_styles():
    image = plain([0.2, 0.3, 0.5])
    for wanted, expected in ((["Green"], 0.3), (["Green", "Blue"], 0.8), (["Blue", "Blue"], 0.5)):
        context = Given(ControlWords.of(wanted=wanted, unwanted=["Red"]), judge=ColourJudge())
        assert figures("judge_wanted", image, "cat", context) == pytest.approx([expected])


@pytest.mark.parametrize("name", ["judge_top1", "judge_top5"])
def test_equal_logits_do_not_count_as_finding_the_subject(name):
    black = plain([0.0, 0.0, 0.0])
    assert figures(name, black, "cat", Given(INK_OVER_3D, judge=ColourJudge([0.5] * 7))) == [0]
    broken = Given(INK_OVER_3D, judge=ColourJudge([0.1, math.nan, *[0.0] * 5]))
    assert math.isnan(figures(name, black, "cat", broken)[0])


@pytest.mark.parametrize("names", [("pixels",), ("fit", "fit_sgp")])
def test_a_scorer_named_like_the_images_or_another_scorers_metric_is_refused(tiny, names):
    context = replace(tiny, scorer_settings=dict.fromkeys(names, tiny.reward_settings[0]))
    with pytest.raises(ConfigError, match=f"{names[0]!r} or .* is the name of a metric"):
        check_metrics([], context, ["cat"], num_seeds=2)


def test_judge_wanted_is_high_for_real_ink_images_and_low_for_others(tiny, emoji):
    images, styles, _ = emoji
    ink = torch.tensor([style == "Ink" for style in styles])
    wanted = torch.tensor(figures("judge_wanted", images, "any", tiny))
    assert (wanted[ink] > 0.9).float().mean() >= 0.9
    assert (wanted[~ink] < 0.1).float().mean() >= 0.9


def test_real_images_score_high_for_their_subject_and_low_for_another(tiny, emoji):
    images, _, names = emoji
    shown, others = [], []
    for name, other in zip(sorted(set(names)), sorted(set(names))[1:], strict=False):
        own = torch.stack(
            [image for image, other_name in zip(images, names, strict=True) if other_name == name]
        )
        shown += figures("judge_top5", own, f"Ink. {name}", tiny)
        others += figures("judge_top1", own, other, tiny)
    assert sum(shown) / len(shown) > 0.95
    assert sum(others) / len(others) < 0.05


@pytest.mark.parametrize(("rank", "top1", "top5"), [(0, 1, 1), (1, 0, 1), (4, 0, 1), (5, 0, 0), (6, 0, 0)])
def test_judge_top1_and_judge_top5_follow_the_rank_of_the_subject(rank, top1, top5):
    logits = [6.0 - place for place in range(7)]
    context = Given(INK_OVER_3D, judge=ColourJudge(logits))
    prompt = ColourJudge.subjects[rank]
    if prompt == "black cat":
        prompt = "a black cat"
    image = plain([0.0, 0.0, 0.0])
    assert figures("judge_top1", image, prompt, context) == [top1]
    assert figures("judge_top5", image, prompt, context) == [top5]


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("cat", "cat"),
        ("Ink. cat", "cat"),
        ("3D. black cat", "black cat"),
        ("a Black Cat", "black cat"),
        ("Ink. cat face", "Cat face"),
    ],
)
def test_the_subject_is_the_longest_name_that_the_prompt_ends_with(prompt, subject):
    logits = [float(name == subject) for name in ColourJudge.subjects]
    context = Given(INK_OVER_3D, judge=ColourJudge(logits))
    assert figures("judge_top1", plain([0.0, 0.0, 0.0]), prompt, context) == [1]


@pytest.mark.parametrize("prompt", ["meerkat", "bobcat", "cat on a mat", ""])
def test_the_error_names_a_prompt_without_a_known_subject(prompt):
    context = Given(INK_OVER_3D, judge=ColourJudge([0.0] * 7))
    with pytest.raises(DataError, match=f"prompt '{prompt}' ends with none of the judge's 7 subjects"):
        check_metrics(["judge_top1"], context, ["cat", prompt], num_seeds=2)


def test_diversity_is_the_mean_distance_to_the_other_seeds():
    context = Given(INK_OVER_3D, judge=ColourJudge())
    images = plain([1.0, 0, 0], [0.5, 0, 0], [0, 1.0, 0])  # the first two have the same direction
    apart = math.sqrt(2)
    expected = [apart / 2, apart / 2, apart]
    assert figures("diversity", images, "cat", context) == pytest.approx(expected)


def test_diversity_is_zero_for_identical_images_and_larger_for_different_real_images(tiny, by_style):
    name, inputs = by_style
    same = torch.stack([inputs["Ink"]] * 3)
    different = torch.stack(list(inputs.values()))
    assert max(figures("diversity", same, name, tiny)) < 1e-3
    assert min(figures("diversity", different, name, tiny)) > 0.3


def test_the_error_for_a_wanted_word_that_is_not_a_style_lists_the_styles(tiny):
    watercolour = MetricContext(
        tiny.reward_settings, tiny.judge_settings, ControlWords.of(wanted=["Watercolour"], unwanted=["3D"])
    )
    with pytest.raises(
        ConfigError, match="Watercolour is not a style of the judge: known are 3D, Flat, Ink, Noto"
    ):
        check_metrics(["judge_wanted"], watercolour, ["cat"], num_seeds=2)


def test_diversity_with_one_seed_is_refused_before_any_image_is_generated(tiny):
    with pytest.raises(ConfigError, match="seeds_per_prompt is 1"):
        check_metrics(["diversity"], tiny, ["cat"], num_seeds=1)
    check_metrics(["diversity"], tiny, ["cat"], num_seeds=2)


def test_a_metric_that_compares_with_the_base_is_refused_where_there_are_no_images_of_the_base(tiny):
    with pytest.raises(
        ConfigError, match="'common_edge' compares with the base's images from the same noise, which on"
    ):
        check_metrics(["reward", "common_edge"], tiny, ["cat"], num_seeds=2)
    check_metrics(["reward", "common_edge"], tiny, ["cat"], num_seeds=2, beside_base=True)


def test_a_model_equal_to_the_base_has_no_broken_copied_or_repeated_image(complete, by_style):
    subject, inputs = by_style
    images = torch.stack(list(inputs.values()))
    for name in ("broken", "copied", "repeated", "uneven_phases", "spectral_peak"):
        assert figures(name, images, subject, complete) == [0] * len(images), name


def test_the_error_for_an_unknown_metric_lists_the_known_ones(tiny):
    with pytest.raises(
        ConfigError, match="unknown metric 'beauty': known are broken, channel_agreement, clipped_highlights"
    ):
        check_metrics(["beauty"], tiny, ["cat"], num_seeds=2)


def test_a_scorer_is_loaded_only_for_a_metric_that_needs_it(tiny, family):
    without_reward = MetricContext(
        [RewardSettings(scorer="open_clip", path="nowhere", weight=1)], tiny.judge_settings, INK_OVER_3D
    )
    assert len(figures("judge_wanted", torch.rand(2, 3, 64, 64), "cat", without_reward)) == 2


@pytest.fixture
def complete(tiny, emoji, directories):
    """Return a context with real images and an additional scorer."""
    clip = ScorerSettings(scorer="clip_score", path=str(directories["clip_score"]))
    return replace(tiny, real=lambda: emoji[0][:80].split(32), scorer_settings={"clip": clip})


@pytest.mark.parametrize("name", metric_names(sorted(METRICS), ["clip"]))
def test_every_metric_gives_one_figure_per_image_in_its_documented_range(name, complete, by_style):
    subject, inputs = by_style
    context = complete
    if name in {"judge_score", "judge_sgp"}:
        context = replace(context, judge_settings=context.reward_settings[0])
    check_metrics([name], context, [subject], num_seeds=4, beside_base=True)
    values = figures(name, torch.stack(list(inputs.values())), subject, context)
    low, high = find_metric(name, context.scorer_settings).range_in(context)
    assert len(values) == 4
    assert all(low <= value <= high for value in values)
    assert find_metric(name, context.scorer_settings).source
    assert find_metric(name, context.scorer_settings).licence(context) in {"Apache-2.0", "MIT"}
    if name in METRICS:
        documentation = METRICS[name].figures.__doc__
        assert METRICS[name].note
        assert "[" in documentation or "1 where" in documentation


def test_the_range_of_a_metric_is_that_of_its_scorers_times_their_weights(complete):
    """Early stop counts no figure beyond it, so a range that is too narrow would hide how far images are from a limit."""
    path = complete.reward_settings[0].path
    rewards = [
        RewardSettings(scorer="open_clip", path=path, weight=2),
        RewardSettings(scorer="pick_score", path=path, weight=0.5),
    ]
    judge = ScorerSettings(scorer="clip_score", path=path)
    context = replace(complete, reward_settings=rewards, judge_settings=judge)

    def range_of(name):
        return find_metric(name, context.scorer_settings).range_in(context)

    assert range_of("reward") == (-4.5, 4.5)
    assert range_of("relative_reward") == (-9, 9)
    assert range_of("judge_score") == range_of("clip") == (-100, 100)
    assert range_of("judge_sgp") == range_of("clip_sgp") == (-200, 200)
    assert range_of("saturation") == METRICS["saturation"].range == (0, 1)


BY_REWARD = {"reward", "relative_reward"}
BY_JUDGE = {
    "judge_wanted",
    "judge_top1",
    "judge_top5",
    "judge_score",
    "judge_sgp",
    "diversity",
    "kid",
    "broken",
}


@pytest.mark.parametrize(("reward", "judge"), [("pick_score", "hps_v2"), ("hps_v2", "pick_score")])
def test_a_metric_has_the_licence_of_its_scorers_weights_or_else_of_this_project(reward, judge):
    licences = {"hps_v2": "Apache-2.0", "pick_score": "MIT", "clip_score": "MIT", "timm_judge": "Apache-2.0"}
    given = {name: ScorerSettings(scorer=name, path="nowhere") for name in licences}
    further = {"clip": given["clip_score"], "timm": given["timm_judge"]}
    context = MetricContext(
        [RewardSettings(scorer=reward, path="nowhere", weight=1)], given[judge], INK_OVER_3D, further
    )
    found = {
        name: find_metric(name, context.scorer_settings).licence(context)
        for name in metric_names(sorted(METRICS), further)
    }
    of_scorers = dict.fromkeys(BY_REWARD, licences[reward]) | dict.fromkeys(BY_JUDGE, licences[judge])
    of_scorers |= {"clip": "MIT", "clip_sgp": "MIT", "timm": "Apache-2.0", "timm_sgp": "Apache-2.0"}
    assert found == dict.fromkeys(found, "Apache-2.0") | of_scorers


def test_every_additional_scorer_adds_its_score_and_its_sgp(complete, by_style):
    subject, inputs = by_style
    images = torch.stack(list(inputs.values()))
    assert metric_names(["reward", "clip"], ["clip"]) == ["reward", "clip", "clip_sgp"]
    scorer = complete.scorers["clip"]
    texts = scorer.encode_texts([subject, f"Ink. {subject}", f"3D. {subject}"])
    plain_, wanted, unwanted = (
        100 * scorer.encode_images(images) @ texts.T.unbind(1)[0],
        *(100 * scorer.encode_images(images) @ texts[row] for row in (1, 2)),
    )
    assert figures("clip", images, subject, complete) == pytest.approx(plain_.tolist(), abs=1e-4)
    assert figures("clip_sgp", images, subject, complete) == pytest.approx(
        (wanted - unwanted).tolist(), abs=1e-4
    )


def test_a_scorer_named_like_a_metric_and_one_that_does_not_read_texts_are_refused(complete):
    reward = complete.reward_settings[0]
    with pytest.raises(ConfigError, match="'kid' or 'kid_sgp' is the name of a metric"):
        check_metrics(["reward"], replace(complete, scorer_settings={"kid": reward}), ["cat"], num_seeds=2)
    judge = replace(complete, scorer_settings={"j": complete.judge_settings})
    with pytest.raises(ConfigError, match="'style_subject_judge' is not differentiable: a reward is one of"):
        measure(["j"], torch.rand(2, 3, 64, 64), "cat", judge)


def test_a_text_judge_scores_like_the_same_reward_and_errors_suggest_suitable_metrics(tiny, by_style):
    name, inputs = by_style
    images = torch.stack(list(inputs.values()))
    reading = replace(tiny, judge_settings=tiny.reward_settings[0])
    assert figures("judge_score", images, name, reading) == figures("reward", images, name, tiny)
    assert figures("judge_sgp", images, name, reading) == figures("relative_reward", images, name, tiny)
    assert min(figures("diversity", images, name, reading)) > 0.1
    with pytest.raises(
        ConfigError,
        match=r"'judge_wanted' needs a judge that classifies .*: measure judge_score, judge_sgp instead",
    ):
        check_metrics(["judge_wanted"], reading, [name], num_seeds=2)
    with pytest.raises(ConfigError, match="measure judge_wanted, judge_top1, judge_top5 instead"):
        check_metrics(["judge_sgp"], tiny, [name], num_seeds=2)


def test_the_kernel_distance_compares_with_real_images_in_the_wanted_style(tiny, emoji):
    images, styles, _ = emoji
    context = replace(tiny, real=lambda: images[:80].split(32))
    seen_as_ink = len(context.real_features)
    assert seen_as_ink == pytest.approx(styles[:80].count("Ink"), abs=5)
    of_style = {
        style: torch.stack(
            [image for image, other in zip(images[80:], styles[80:], strict=True) if other == style]
        )
        for style in set(styles)
    }
    distance = {style: sum(figures("kid", of_style[style], "any", context)) for style in of_style}
    assert min(distance, key=distance.get) == "Ink"
    assert all(
        distance["Ink"] < distance[other] / 3 for other in ("3D", "Flat", "Noto")
    )  # measured: 0.26 to 0.28


def test_the_kernel_distance_of_a_text_judge_is_large_enough_for_three_decimals(tiny, emoji):
    images, styles, names = emoji
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    # subjects are sorted by kind: with every second one, both halves have animals, food and objects in all four styles
    half = torch.tensor([order[name] % 2 == 0 for name in names])
    context = replace(tiny, judge_settings=tiny.reward_settings[0], real=lambda: images[half].split(32))
    assert context.real_features.norm(dim=1).mean() == pytest.approx(context.real_features.shape[1] ** 0.5)
    ink = images[~half & torch.tensor([style == "Ink" for style in styles])]
    near = sum(figures("kid", images[~half], "any", context)) / int((~half).sum())
    far = sum(figures("kid", ink, "any", context)) / len(ink)
    assert far > 2 * abs(near), (near, far)
    assert far > 0.05, "at length 1 the three decimals of a report would hardly show it"


def test_the_kernel_distance_without_real_images_is_refused_before_any_image_is_generated(tiny, emoji):
    with pytest.raises(ConfigError, match="only the stage evaluate reads"):
        check_metrics(["kid"], tiny, ["cat"], num_seeds=2)
    none_wanted = torch.stack([i for i, style in zip(*emoji[:2], strict=True) if style == "3D"][:10])
    with pytest.raises(DataError, match="'kid' needs 2 preferred images"):
        check_metrics(["kid"], replace(tiny, real=lambda: [none_wanted]), ["cat"], num_seeds=2)
