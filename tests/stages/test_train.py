import logging

from srpo_core.config import ControlWords
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
