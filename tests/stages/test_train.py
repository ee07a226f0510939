import hashlib
import json
import logging

import pytest

from srpo_core.artifacts import AGREEMENT, write_json
from srpo_core.config import ControlWords, RewardSettings, patched
from srpo_core.errors import ArtifactError
from srpo_core.stages import train


def test_control_words_in_training_prompts_are_counted_and_missing_ones_warned_about(
    tiny_project, monkeypatch, caplog
):
    """The prompts are red apple, crab, tiger face, penguin and rose."""
    monkeypatch.chdir(tiny_project)
    words = ControlWords.of(wanted=["Tiger", "Ink"], unwanted=["face", "apple"])
    with caplog.at_level(logging.WARNING):
        counts = train.count_control_words(words)
    assert counts == {"prompts": 5, "wanted": {"Tiger": 1, "Ink": 0}, "unwanted": {"face": 1, "apple": 1}}
    assert [record.getMessage() for record in caplog.records] == [
        "none of the 5 training prompts contains the control words Ink: the base and the reward must know them from "
        "elsewhere; a rare word steers better together with a frequent one"
    ]


def test_a_further_reward_that_changed_since_it_was_checked_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"1")
    digest = hashlib.sha256(b"1").hexdigest()
    write_json(AGREEMENT, {"agreement": 0.9, "weights": {"second/weights": digest}})
    rewards = [RewardSettings(scorer="open_clip", path=name, weight=1) for name in ("first", "second")]
    train.require_checked(rewards)
    (tmp_path / "second/more").write_bytes(b"1")
    with pytest.raises(
        ArtifactError, match=r"^second/more of a reward is not as it was when check_reward ran"
    ):
        train.require_checked(rewards)
    (tmp_path / "second/more").unlink()
    (tmp_path / "second/weights").write_bytes(b"2")
    with pytest.raises(ArtifactError, match=r"^second/weights of a reward"):
        train.require_checked(rewards)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"optimizer": {"learning_rate": 1e-3}, "steps": 7}, True),
        ({"micro_batch_size": 2}, True),  # the size is in the file's name
        ({"compute": {"tf32": True}}, False),
        ({"compute": {"attention": "_native_math"}}, False),
    ],
)
def test_the_figures_of_the_base_are_kept_for_runs_that_generate_alike(job, monkeypatch, changes, same):
    monkeypatch.setattr(train, "key_of", lambda _stage, settings, **_: json.dumps(settings))

    def key(settings):
        return train._key(job.seed, job.model, list(job.rewards), job.select_judge, settings)

    other = patched(job.train.model_dump(mode="json"), changes)
    assert (key(type(job.train).model_validate(other)) == key(job.train)) == same
