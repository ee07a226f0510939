"""`srpo doctor`, and loading, on scorers whose files are incomplete."""

import json
import shutil
from pathlib import Path

import pytest
from spoiled_weights import FAMILY, TINY, faults, replace, write_lock

from srpo_core.errors import ArtifactError
from srpo_core.scorers import load_scorer


def test_a_reward_without_weights_says_what_is_there_instead(checkout):
    reward = Path(FAMILY, "reward")
    (reward / "tiny-emoji-clip.safetensors").unlink()
    (reward / "clip.gguf").write_bytes(b"GGUF")
    (fault,) = faults()
    assert fault.startswith(
        f"{reward} should have weights (.safetensors, or .pt as published), but has only clip.gguf"
    )


def judge_without_configuration(family):
    (family / "judge_b/config.json").unlink()
    return "judge_b/config.json is missing", TINY.judge


def judge_under_another_name(family):
    (family / "judge_b/judge.safetensors").rename(family / "judge_b/x.safetensors")
    return "judge_b/judge.safetensors is missing: fetch it", TINY.judge


def judge_as_an_array(family):
    replace(family / "judge_b/config.json", b"[1]")
    return "judge_b/config.json is damaged (no JSON object)", TINY.judge


def reward_without_configuration(family):
    (family / "reward/tiny-emoji-clip.json").unlink()
    return "must contain one open_clip configuration NAME.json", TINY.rewards[0]


def reward_with_two_configurations(family):
    shutil.copy(family / "reward/tiny-emoji-clip.json", family / "reward/other.json")
    return "contains 2 configurations", TINY.rewards[0]


def reward_under_another_name(family):
    (family / "reward/tiny-emoji-clip.safetensors").rename(family / "reward/other.safetensors")
    return "tiny-emoji-clip.safetensors is missing: fetch it", TINY.rewards[0]


def clip_in_shards(family):
    """A CLIP of transformers of which only one shard is there; no scorer reads shards."""
    (family / "clip").mkdir()
    (family / "clip/config.json").write_text("{}")
    shutil.copy(family / "judge_a/judge.safetensors", family / "clip/model-00001-of-00002.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (family / "clip/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    return "clip/model.safetensors is missing: fetch it", scorer("clip_score", family / "clip")


def hps_with_two_weights(family):
    (family / "hps").mkdir()
    for name in ("a", "b"):
        shutil.copy(family / "judge_a/judge.safetensors", family / f"hps/{name}.safetensors")
    return "must contain one weights file", scorer("hps_v2", family / "hps")


def scorer(name, path):
    return TINY.rewards[0].model_copy(update={"scorer": name, "path": str(path)})


@pytest.mark.parametrize(
    "spoil",
    [
        judge_without_configuration,
        judge_under_another_name,
        judge_as_an_array,
        reward_without_configuration,
        reward_with_two_configurations,
        reward_under_another_name,
        clip_in_shards,
        hps_with_two_weights,
    ],
)
def test_doctor_refuses_a_scorer_that_loading_refuses(checkout, spoil):
    message, spoiled = spoil(Path(FAMILY))
    given = {"judge": spoiled} if spoiled is TINY.judge else {"rewards": [spoiled]}
    (fault,) = faults(TINY.model_copy(update=given))
    assert message in fault
    assert "\n" not in fault
    with pytest.raises(ArtifactError):
        load_scorer(spoiled)


def test_a_fetched_scorer_that_loading_refuses_is_named(checkout):
    """`srpo fetch` completes what models.lock names; that is not always what the scorer of the settings reads."""
    directory = Path(TINY.judge.path)
    names = sorted(path.name for path in directory.iterdir())
    write_lock(TINY.judge.path, names)
    assert faults() == []
    reward = scorer("open_clip", directory)
    (fault,) = faults(TINY.model_copy(update={"rewards": [reward]}))
    assert fault == f"{directory / 'config.safetensors'} is missing: fetch it"
    with pytest.raises(ArtifactError):
        load_scorer(reward)
    write_lock(TINY.judge.path, ["config.json"])
    (directory / "judge.safetensors").unlink()
    (fault,) = faults()
    assert fault == f"{directory / 'judge.safetensors'} is missing: fetch it"
