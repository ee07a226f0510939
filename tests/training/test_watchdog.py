import json
import threading
import time
from contextlib import suppress
from functools import partial

import pytest

from srpo_core.config import StallSettings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.learner import read_scalars
from srpo_core.training.watchdog import EXIT_CODE, Watchdog, _position, pop_stall, stall_reports

QUICK = StallSettings(factor=5, least_seconds=0.2, restarts=1)


def watching(tmp_path, ended, stall=QUICK):
    return Watchdog(Location.of(tmp_path), "a", 3, 4, stall, exit_process=ended.append, grace=0.0)


def test_steps_of_the_usual_length_are_left_alone(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        for step in range(1, 6):
            time.sleep(0.1)
            watchdog.step_done(step)
    assert ended == []
    assert pop_stall(Location.of(tmp_path), "a") is None


def test_a_step_that_stands_still_ends_the_process_and_says_where_it_stood(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(6)
        watchdog.step_done(7)
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
    assert ended == [EXIT_CODE]
    (said,) = (json.loads(path.read_text()) for path in tmp_path.glob("stalled-a/*.json"))
    assert (said["rank"], said["step"], said["waiting"]) == (3, 8, False)
    assert said["seconds"] >= 0.2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_report_that_cannot_be_written_ends_the_process_all_the_same(tmp_path):
    (tmp_path / "full").write_text("a file where the directory of the reports should be")
    ended = []
    with Watchdog(
        Location.of(tmp_path / "full"), "a", 3, 4, QUICK, exit_process=ended.append, grace=0.0
    ) as watchdog:
        watchdog.step_done(1)
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
    assert ended == [EXIT_CODE]


def test_time_spent_on_a_checkpoint_is_no_stall(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(1)
        with watchdog.between_steps():
            time.sleep(0.5)  # a step would have had 0.2
        time.sleep(0.05)
    assert ended == []


def test_a_checkpoint_that_comes_to_no_end_is_a_stall_all_the_same(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(1)
        with watchdog.between_steps():
            until = time.monotonic() + 20
            while not ended and time.monotonic() < until:
                time.sleep(0.01)
    assert ended == [EXIT_CODE]
    (said,) = (json.loads(path.read_text()) for path in tmp_path.glob("stalled-a/*.json"))
    assert said["seconds"] >= QUICK.factor * QUICK.least_seconds


def test_the_limit_grows_with_the_median_step_and_never_falls_below_the_least(tmp_path):
    watchdog = watching(tmp_path, [], StallSettings(factor=10, least_seconds=4, restarts=0))
    assert watchdog.limit == 40, "the first step loads and compiles"
    watchdog._steps += [0.1, 0.1, 9.0]
    assert watchdog.limit == 4
    watchdog._steps += [2.0, 2.0, 2.0]
    assert watchdog.limit == pytest.approx(20)


def test_who_reads_the_figures_of_a_step_from_its_device_waits_for_others(monkeypatch):
    """A collective of GPUs returns at once; the wait is where its result is read, in a call without a frame."""
    standing = threading.Event()

    class Device:
        def __init__(self):
            standing.set()
            self.tolist = partial(time.sleep, 1)

    monkeypatch.setattr("srpo_core.training.learner.torch.stack", lambda _: Device())

    def train():
        with suppress(TypeError):  # what a nap returns is no list
            read_scalars({})

    thread = threading.Thread(target=train)
    thread.start()
    standing.wait()
    time.sleep(0.2)
    assert _position(thread.ident)[0] is True
    thread.join()
    assert _position(threading.get_ident())[0] is False


def say(tmp_path, *rows, world=3):
    for rank, waiting in rows:
        row = {
            "rank": rank,
            "world": world,
            "step": 8,
            "seconds": 61.2,
            "waiting": waiting,
            "where": "reward.py:36 encode",
        }
        (stall_reports(Location.of(tmp_path), "a") / f"rank-{rank}.json").write(json.dumps(row).encode())


def test_the_rank_that_does_not_wait_for_the_others_is_named(tmp_path):
    say(tmp_path, (0, True), (1, False), (2, True))
    line = pop_stall(Location.of(tmp_path), "a")
    assert line == "step 8 stalled for 61 s at rank 1 in reward.py:36 encode"
    assert pop_stall(Location.of(tmp_path), "a") is None, "told once"


def test_a_rank_that_says_nothing_is_named(tmp_path):
    say(tmp_path, (0, True), (2, True))
    assert pop_stall(Location.of(tmp_path), "a") == "step 8 stalled for 61 s at rank 1"


def test_a_rank_that_a_smaller_group_never_had_is_not_blamed(tmp_path):
    """Asked for were 32; Ray started 2."""
    say(tmp_path, (0, True), (1, False), world=2)
    line = pop_stall(Location.of(tmp_path), "a")
    assert line == "step 8 stalled for 61 s at rank 1 in reward.py:36 encode"
