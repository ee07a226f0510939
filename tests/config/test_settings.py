"""Settings that are refused although each key alone is valid, and old keys."""

import re
from pathlib import Path

import pytest
import yaml

from flows.form import parse_patch
from srpo_core.config import parse_settings, patched, rewards_by_name
from srpo_core.config.renamed import RENAMED
from srpo_core.errors import ConfigError
from srpo_core.runtime.dvc_yaml import value_at

ROOT = Path(__file__).resolve().parents[2]


def parse(profile, patch):
    values = yaml.safe_load((ROOT / f"profiles/{profile}.yaml").read_text())
    return parse_settings(patched(values, patch), "params.yaml")


@pytest.mark.parametrize(
    "spelled", ["models/pick_score", "./models/pick_score/", "models/../models/pick_score"]
)
def test_two_roles_with_the_same_weights_are_refused_for_any_spelling_of_the_path(spelled):
    with pytest.raises(ConfigError, match="select_judge and judge are the same model"):
        parse("flux1_dev", {"select_judge": {"path": spelled}})


@pytest.mark.parametrize(
    ("path", "role"), [("models/hps_v2_1/", "reward"), ("./models/clip_vit_h_14", "select_judge")]
)
@pytest.mark.parametrize("metric", ["alignment", "alignment_sgp"])
def test_a_rule_may_not_use_a_further_scorer_with_the_weights_of_reward_or_select_judge(path, role, metric):
    patch = {
        "evaluate": {"scorers": {"alignment": {"path": path}}},
        "gate": {"rules": {"alignment_kept": {"metric": metric}}},
    }
    with pytest.raises(
        ConfigError, match=f"gate.rules.alignment_kept uses {metric}, which has the weights of {role}"
    ):
        parse("flux1_dev", patch)


def test_a_further_scorer_that_no_rule_uses_may_share_the_weights_of_the_reward():
    shared = {"hps": {"scorer": "hps_v2", "path": "models/hps_v2_1"}}
    settings = parse("flux1_dev", {"evaluate": {"scorers": shared}})
    assert settings.evaluate.scorers["hps"].path == settings.rewards[0].path


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_gets_an_error_that_names_the_new_one(old, new):
    patch = 5
    for part in reversed(old.split(".")):
        patch = {part: patch}
    with pytest.raises(ConfigError, match=re.escape(f"{old} is now {new}")):
        parse("tiny", patch)
    with pytest.raises(ConfigError, match=re.escape(f"{old} is now {new}")):
        parse_patch(patch)  # as --set and the form of Prefect do


def test_every_new_name_is_a_setting():
    values = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text())
    for new in RENAMED.values():
        assert value_at(values, new) is not None


def test_several_rewards_have_their_names_and_each_needs_weights_of_its_own():
    def mix(*scorers):
        return [
            {"scorer": name, "path": f"models/{place}", "weight": 0.5} for place, name in enumerate(scorers)
        ]

    one, two, three = parse("tiny", {"rewards": mix("hps_v2", "pick_score", "hps_v2")}).rewards
    assert rewards_by_name([one]) == {"reward": one}
    assert rewards_by_name([one, two, three]) == {
        "reward_hps_v2": one,
        "reward_pick_score": two,
        "reward_hps_v2_2": three,
    }
    same = [*mix("hps_v2"), *mix("pick_score")]
    with pytest.raises(ConfigError, match="reward_hps_v2 and reward_pick_score are the same model"):
        parse("tiny", {"rewards": same})
    judge = mix("hps_v2", "open_clip")
    judge[1]["path"] = "assets/tiny/family/judge_b"
    with pytest.raises(ConfigError, match="reward_open_clip and judge are the same model"):
        parse("tiny", {"rewards": judge})
    for wrong in ([], [{**mix("hps_v2")[0], "weight": 0}]):
        with pytest.raises(ConfigError, match="rewards"):
            parse("tiny", {"rewards": wrong})


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"train_workers": 4, "shard": False, "shard_group": 2}, "shard_group needs shard: true"),
        (
            {"train_workers": 6, "shard": True, "shard_group": 4},
            "train_workers 6 is no multiple of shard_group 4",
        ),
        ({"train_workers": 4, "shard": True, "shard_group": 1}, "shard_group.*greater than or equal to 2"),
    ],
)
def test_a_group_of_workers_that_cannot_be_formed_is_refused(resources, message):
    with pytest.raises(ConfigError, match=message):
        parse("tiny", {"resources": resources})


def test_the_old_reward_gets_one_error_that_shows_the_new_form():
    values = dict(yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text()))
    only = values.pop("rewards")[0]
    values["reward"] = {"scorer": only["scorer"], "path": only["path"]}
    with pytest.raises(ConfigError) as caught:
        parse_settings(values, "params.yaml")
    assert str(caught.value) == (
        "params.yaml: missing key 'rewards'; unknown key 'reward' (reward is now rewards, a list: "
        "rewards: [{scorer: NAME, path: DIRECTORY, weight: 1}]). See srpo_core/config/ for every key"
    )
