import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from known_pairs import SUBJECTS, write_known_pairs
from safetensors.torch import load_file, save_file

from srpo_core import artifacts
from srpo_core.config import CheckRewardSettings, RewardSettings, ScorerSettings, load_settings
from srpo_core.data.intervals import independent_pairs, wilson_interval
from srpo_core.data.tables import PAIR_COLUMNS, write_rows
from srpo_core.errors import ArtifactError, DataError, GateError
from srpo_core.scorers import load_reward
from srpo_core.scorers.mixed import MixedReward
from srpo_core.stages import check_reward

TINY = Path(__file__).resolve().parents[2] / "assets/tiny"
REWARD = RewardSettings(scorer="open_clip", path=str(TINY / "family/reward"), weight=1)
RESOURCES = load_settings(TINY.parents[1] / "profiles/tiny.yaml").resources
JUDGE = ScorerSettings(scorer="timm_judge", path=str(TINY / "family/judge_a"))


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """Write pairs: first those that prefer the image of the prompt's subject, then those that reject it."""
    monkeypatch.chdir(tmp_path)
    write_known_pairs()

    def write(num_right, num_wrong=0, split="test"):
        names = list(SUBJECTS)
        rows = []
        for number in range(num_right + num_wrong):
            own, other = names[number % len(names)], names[(number + 1) % len(names)]
            order = (own, other) if number < num_right else (other, own)
            rows.append((number, split, own, *order, ""))
        write_rows(artifacts.PAIRS, PAIR_COLUMNS, rows)

    return write


def run(max_pairs=100, min_agreement=0.9, rewards=(REWARD,), judge=JUDGE):
    settings = CheckRewardSettings(max_pairs=max_pairs, min_agreement=min_agreement)
    check_reward.run(rewards=list(rewards), select_judge=judge, check_reward=settings, resources=RESOURCES)
    return artifacts.read_json(artifacts.AGREEMENT)


def untrain(directory, copy):
    """Copy a scorer, with zeros in place of the weights of its last layer."""
    shutil.copytree(directory, copy)
    for file in copy.glob("*.safetensors"):
        weights = load_file(file)
        last = [name for name in weights if name.startswith(("b.1.", "visual.attnpool.v_proj."))]
        assert last
        save_file(weights | {name: torch.zeros_like(weights[name]) for name in last}, file)
    return copy


def test_the_tiny_reward_agrees_with_pairs_that_are_correct_by_construction(pairs):
    pairs(6)
    figures = run()
    low, high = wilson_interval(1.0, 6)
    assert figures == {"pairs": 6, "prompts": 6, "agreement": 1.0, "low": low, "high": high}


def test_swapped_pairs_count_as_disagreement_and_stop_the_run(pairs):
    pairs(12, 4)
    with pytest.raises(GateError) as caught:
        run()
    message = str(caught.value)
    assert "only 0.750 of 16 pairs" in message
    assert "min_agreement is 0.9" in message
    assert "\n" not in message
    assert artifacts.read_json(artifacts.AGREEMENT)["agreement"] == 0.75


def test_inverted_preferences_stop_the_run_whatever_the_threshold(pairs):
    pairs(0, 24)
    with pytest.raises(GateError, match=r"open_clip in .* prefers the rejected images: .* 0.000 of 24 pairs"):
        run(min_agreement=0)
    assert artifacts.read_json(artifacts.AGREEMENT)["agreement"] == 0


def test_a_reward_or_a_judge_that_fails_a_known_answer_stops_the_run_by_its_name(pairs, tmp_path):
    """Both have the weights of an untrained model: the files are complete and load without an error."""
    pairs(6)
    untrained = untrain(Path(JUDGE.path), tmp_path / "untrained")
    with pytest.raises(GateError) as caught:
        run(judge=JUDGE.model_copy(update={"path": str(untrained)}))
    message = str(caught.value)
    assert (
        f"the scorer select_judge (timm_judge in {untrained}) fails a question with a known answer" in message
    )
    assert "an image must fit its prompt better than noise does" in message


def test_a_reward_that_gives_no_number_is_an_error_and_no_disagreement(pairs, monkeypatch):
    pairs(6)
    reward = load_reward(REWARD)
    encode = reward.encode_texts
    monkeypatch.setattr(reward, "encode_texts", lambda texts: encode(texts) * torch.nan)
    monkeypatch.setattr(check_reward, "load_rewards", lambda settings: reward)
    with pytest.raises(GateError, match="no finite score to a pair of 'owl'"):
        run(min_agreement=0)


def test_of_several_rewards_the_sum_counts_and_each_agreement_is_written(pairs):
    pairs(6)
    second = REWARD.model_copy(update={"weight": 0.5})
    figures = run(rewards=[REWARD, second])
    assert figures["agreement"] == 1.0
    assert figures["each"] == {"open_clip": 1.0, "open_clip_2": 1.0}
    files = sorted(str(path) for path in Path(second.path).iterdir())
    assert list(figures["weights"]) == files
    assert figures["weights"][files[0]] == artifacts.sha256(Path(files[0]))


def test_an_inverted_reward_in_a_mix_is_refused_by_its_name_although_the_mix_agrees(pairs, monkeypatch):
    pairs(24)
    right = load_reward(REWARD)
    inverted = SimpleNamespace(
        score=lambda images, texts: -right.score(images, texts), to=lambda device: None
    )
    mix = MixedReward({"right": right, "inverted": inverted}, {"right": 3.0, "inverted": 0.5})
    monkeypatch.setattr(check_reward, "load_rewards", lambda settings: mix)
    with pytest.raises(
        GateError, match=r"^the reward inverted \(.* prefers the rejected .* only 0.000 of 24"
    ):
        run(rewards=[REWARD, REWARD.model_copy(update={"weight": 0.5})])
    figures = artifacts.read_json(artifacts.AGREEMENT)
    assert (figures["agreement"], figures["each"]) == (1.0, {"right": 1.0, "inverted": 0.0})


def test_an_image_is_encoded_once_for_all_pairs_that_contain_it(pairs, monkeypatch):
    rows = [(0, "test", "owl", "owl", "rocket", ""), (1, "test", "rocket", "rocket", "owl", "")]
    write_rows(artifacts.PAIRS, PAIR_COLUMNS, rows)
    reward = load_reward(REWARD)
    encoded, encode = [], reward.encode_images
    monkeypatch.setattr(
        reward, "encode_images", lambda images: (encoded.append(len(images)), encode(images))[1]
    )
    monkeypatch.setattr(check_reward, "load_rewards", lambda settings: reward)
    assert run(min_agreement=0)["agreement"] == 1.0
    assert encoded == [1, 1]


def test_an_agreement_that_equals_the_threshold_passes(pairs):
    pairs(12, 4)
    assert run(min_agreement=0.75)["agreement"] == 0.75


def test_two_equal_images_do_not_count_as_agreement(pairs):
    write_rows(artifacts.PAIRS, PAIR_COLUMNS, [(0, "test", "rocket", "rocket", "rocket", "")])
    assert run(min_agreement=0)["agreement"] == 0


def test_at_most_max_pairs_are_scored_in_several_batches(pairs):
    pairs(150)
    assert run(max_pairs=100)["pairs"] == 100
    assert run(max_pairs=3)["pairs"] == 3


def test_only_held_out_pairs_are_counted(pairs):
    pairs(6, split="train")
    with pytest.raises(DataError, match="no pairs of the split test"):
        run()


def test_without_pairs_no_agreement_is_measured_and_the_weights_of_a_mix_are_still_written(pairs, caplog):
    pairs(0)
    caplog.set_level("INFO")
    figures = run(max_pairs=None, rewards=(REWARD, REWARD.model_copy(update={"weight": 0.5})))
    assert figures["pairs"] == 0
    assert "agreement" not in figures
    assert sorted(Path(name).name for name in figures["weights"]) == sorted(
        path.name for path in Path(REWARD.path).iterdir()
    )
    assert "agrees with people is not measured, because the data have no pairs" in caplog.text
    assert "reward_open_clip, reward_open_clip_2, select_judge: answered questions" in caplog.text


@pytest.mark.parametrize("settings", [REWARD, JUDGE])
def test_without_pairs_an_untrained_scorer_is_still_refused_by_its_name(pairs, tmp_path, settings):
    pairs(0)
    untrained = settings.model_copy(
        update={"path": str(untrain(Path(settings.path), tmp_path / "untrained"))}
    )
    given = {"rewards": [REWARD, untrained]} if settings is REWARD else {"judge": untrained}
    name = "reward_open_clip_2" if settings is REWARD else "select_judge"
    with pytest.raises(
        GateError, match=rf"^the scorer {name} \(.*untrained\) fails a question with a known answer"
    ):
        run(max_pairs=None, **given)
    assert artifacts.read_json(artifacts.AGREEMENT)["pairs"] == 0


def test_a_second_run_writes_the_same_file(pairs):
    pairs(5, 1)
    run(min_agreement=0.5)
    first = artifacts.AGREEMENT.read_bytes()
    run(min_agreement=0.5)
    assert artifacts.AGREEMENT.read_bytes() == first


def test_a_missing_table_names_the_stage_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="dvc repro ingest"):
        run()


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0)],
)
def test_the_wilson_interval_matches_the_table_of_newcombe(successes, trials, low, high):
    # Newcombe 1998, table I, method 3 (score without continuity correction)
    assert wilson_interval(successes / trials, trials) == (
        pytest.approx(low, abs=6e-5),
        pytest.approx(high, abs=6e-5),
    )


def test_pairs_of_a_prompt_with_the_same_outcome_count_as_one_pair():
    prompts = [f"prompt {number // 5}" for number in range(100)]
    as_one = [number // 5 % 4 != 0 for number in range(100)]  # three prompts of four
    assert independent_pairs(as_one, prompts) == pytest.approx(20 * 19 / 20)
    apart = [number % 4 != 0 for number in range(100)]
    assert independent_pairs(apart, [str(number) for number in range(100)]) == pytest.approx(99)
    assert independent_pairs([True] * 100, prompts) == 20
    assert independent_pairs([True, False], ["one", "one"]) == 1


def test_the_interval_covers_the_true_value_if_pairs_share_prompts():
    generate, share, worlds = random.Random(5), 0.8, 1000
    prompts = [str(number // 6) for number in range(360)]
    covered = blind = 0
    for _ in range(worlds):
        # five of the six pairs of a prompt share their outcome
        agreed = [
            one for _ in range(60) for one in [generate.random() < share] * 5 + [generate.random() < share]
        ]
        measured = sum(agreed) / len(agreed)
        low, high = wilson_interval(measured, independent_pairs(agreed, prompts))
        covered += low <= share <= high
        low, high = wilson_interval(measured, len(agreed))
        blind += low <= share <= high
    assert covered / worlds == pytest.approx(0.95, abs=0.03)
    assert blind / worlds < 0.75, "counted as independent, they claim far too much"


def test_the_written_interval_is_wider_if_pairs_repeat_a_prompt(pairs):
    pairs(150)
    figures = run(max_pairs=100)
    assert (figures["pairs"], figures["prompts"]) == (100, 6)
    assert figures["low"] == pytest.approx(wilson_interval(1.0, 6)[0])
