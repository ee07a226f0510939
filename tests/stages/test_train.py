import json
import logging

import pytest

from srpo_core.config import ControlWords, patched
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


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"optimizer": {"learning_rate": 1e-3}, "steps": 7}, True),
        ({"compute": {"tf32": True}}, False),
        ({"compute": {"attention": "_native_math"}}, False),
        ({"micro_batch_size": 2}, False),
    ],
)
def test_the_figures_of_the_base_are_kept_for_runs_that_generate_alike(job, monkeypatch, changes, same):
    monkeypatch.setattr(train, "key_of", lambda _stage, settings, **_: json.dumps(settings))

    def key(settings):
        return train._key(job.seed, job.model, list(job.rewards), job.select_judge, settings)

    other = patched(job.train.model_dump(mode="json"), changes)
    assert (key(type(job.train).model_validate(other)) == key(job.train)) == same
