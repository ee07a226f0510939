import base64
import logging

import pytest

from flows import live_progress
from flows.live_progress import StepProgress


@pytest.fixture
def shown(monkeypatch):
    """Collect what is sent to the server, in order."""
    sent = []
    monkeypatch.setattr(
        live_progress,
        "create_progress_artifact",
        lambda share, *, key, description: sent.append((key, share, description)) or "id",
    )
    monkeypatch.setattr(
        live_progress,
        "update_progress_artifact",
        lambda artifact, share, *, description: sent.append((artifact, share, description)),
    )
    monkeypatch.setattr(
        live_progress,
        "create_image_artifact",
        lambda image, *, key, description: sent.append((key, image, description)),
    )
    monkeypatch.setattr(live_progress, "get_run_logger", lambda: logging.getLogger("flow"))
    return sent


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_share_of_the_steps_their_figures_and_the_time_left_are_shown(shown, clock):
    progress = StepProgress("check_reward", None, clock)
    for step in (1, 2, 3):
        progress.see(f"step {step} of 30  loss 0.5{step}  grad_norm 0.1")
        clock.now += 10
    key, _, text = shown[0]
    assert (key, text) == ("check-reward-progress", "check_reward: step 1 of 30; loss 0.51  grad_norm 0.1")
    assert [share for _, share, _ in shown] == pytest.approx([100 / 30, 200 / 30, 10.0])
    assert [text for _, _, text in shown[1:]] == [
        "check_reward: step 2 of 30, 5 min left; loss 0.52  grad_norm 0.1",
        "check_reward: step 3 of 30, 4 min left; loss 0.53  grad_norm 0.1",
    ]


def test_other_lines_and_steps_that_follow_at_once_send_nothing_but_the_last_step_does(shown, clock):
    progress = StepProgress("train", None, clock)
    for line in ("this is train", "step one of 3  loss 1", "step 1 of 3  loss 1", "step 2 of 3  loss 1"):
        progress.see(line)
    assert [share for _, share, _ in shown] == [pytest.approx(100 / 3)]
    progress.see("step 3 of 3  loss 1")
    assert shown[-1] == ("id", 100.0, "train: step 3 of 3; loss 1")


def test_the_evidence_of_each_checkpoint_is_drawn_beside_its_threshold(shown, clock):
    progress = StepProgress("train", 20.0, clock)
    progress.see("step 10 of 30  loss 1  alarm 0.8000")
    progress.see("step 20 of 30  loss 1  alarm 3.2000")
    images = [(image, text) for key, image, text in shown if key == "alarm"]
    assert [text for _, text in images] == [
        "evidence of reward hacking after step 10: 0.8; training ends at 20",
        "evidence of reward hacking after step 20: 3.2; training ends at 20",
    ]
    svg = base64.b64decode(images[1][0].removeprefix("data:image/svg+xml;base64,")).decode()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert svg.count("<circle") == 2
    assert "1/alpha = 20" in svg


def test_a_server_that_does_not_answer_ends_the_updates_with_one_warning(shown, clock, monkeypatch, caplog):
    def fail(*_, **__):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(live_progress, "create_progress_artifact", fail)
    progress = StepProgress("train", None, clock)
    progress.see("step 1 of 3  loss 1")
    progress.see("step 3 of 3  loss 1")
    assert [record.getMessage() for record in caplog.records] == [
        "the UI shows no further progress of train: nobody listens"
    ]
    assert shown == []
