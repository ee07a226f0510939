import json
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from srpo_core.config import StallSettings, load_settings
from srpo_core.runtime.shared_files import Location
from srpo_core.training.learner import read_scalars
from srpo_core.training.watchdog import (
    EXIT_CODE,
    Watchdog,
    _position,
    collective_timeout,
    is_restart_after_stall,
    pop_stall,
    restart_line,
    stall_reports,
)

PROFILES = Path(__file__).resolve().parents[2] / "profiles"
QUICK = StallSettings(factor=5, least_seconds=0.2, restarts=1)


def watching(tmp_path, ended, stall=QUICK):
    return Watchdog(Location.of(tmp_path), "a", 3, 4, stall, exit_process=ended.append, grace=0.0)


def test_steps_of_usual_length_are_not_a_stall(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        for step in range(1, 6):
            time.sleep(0.1)
            watchdog.step_done(step)
    assert ended == []
    assert pop_stall(Location.of(tmp_path), "a") is None


def test_a_stalled_step_ends_the_process_with_a_report(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(6)
        watchdog.step_done(7)
        until = time.monotonic() + 20
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
    assert ended == [EXIT_CODE]
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("stalled-a/*.json"))
    assert (report["rank"], report["step"], report["waiting"]) == (3, 8, False)
    assert report["seconds"] >= 0.2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_process_ends_even_if_the_report_cannot_be_written(tmp_path):
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


def test_time_spent_on_a_checkpoint_is_not_a_stall(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(1)
        with watchdog.between_steps():
            time.sleep(0.5)  # the limit of a step is 0.2
        time.sleep(0.05)
    assert ended == []


def test_a_checkpoint_that_never_ends_is_a_stall(tmp_path):
    ended = []
    with watching(tmp_path, ended) as watchdog:
        watchdog.step_done(1)
        with watchdog.between_steps():
            until = time.monotonic() + 20
            while not ended and time.monotonic() < until:
                time.sleep(0.01)
    assert ended == [EXIT_CODE]
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("stalled-a/*.json"))
    assert report["seconds"] >= QUICK.factor * QUICK.least_seconds


def test_the_limit_grows_with_the_median_step_and_has_a_minimum(tmp_path):
    watchdog = watching(tmp_path, [], StallSettings(factor=10, least_seconds=4, restarts=0))
    assert watchdog.limit == 40, "the first step loads and compiles"
    watchdog._steps += [0.1, 0.1, 9.0]
    assert watchdog.limit == 4
    watchdog._steps += [2.0, 2.0, 2.0]
    assert watchdog.limit == pytest.approx(20)
    watchdog._steps += [9.0] * 20
    assert watchdog.limit == 40, "no limit is longer than that of the first step"


@pytest.mark.parametrize("profile", sorted(PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_collective_times_out_only_after_every_limit_of_the_watchdog(tmp_path, profile):
    """NCCL's timeout ends a process too, but does not name the rank at fault."""
    stall = load_settings(profile).resources.stall
    watchdog = Watchdog(Location.of(tmp_path), "a", 0, 2, stall)
    limits = [watchdog.limit]
    for seconds in (1.0, stall.least_seconds, 100 * stall.least_seconds):
        watchdog._steps = [seconds]
        limits.append(watchdog.limit)
    timeout = collective_timeout(stall).total_seconds()
    assert timeout >= max(limits) + 60 + watchdog.grace
    assert timeout >= 1800, "ranks that load from slow storage start far apart"


def test_a_rank_that_reads_results_from_its_device_counts_as_waiting(monkeypatch):
    """On GPUs a collective returns at once; the host waits where it reads the result, in a call without a frame."""
    standing = threading.Event()

    class Device:
        def __init__(self):
            standing.set()
            self.tolist = partial(time.sleep, 1)

    monkeypatch.setattr("srpo_core.training.learner.torch.stack", lambda _: Device())

    def train():
        with suppress(TypeError):  # time.sleep does not return a list
            read_scalars({})

    thread = threading.Thread(target=train)
    thread.start()
    standing.wait()
    time.sleep(0.2)
    assert _position(thread.ident)[0] is True
    thread.join()
    assert _position(threading.get_ident())[0] is False


def write_reports(tmp_path, *rows, world=3):
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


def test_the_stall_message_names_the_rank_that_does_not_wait_for_the_others(tmp_path):
    write_reports(tmp_path, (0, True), (1, False), (2, True))
    line = pop_stall(Location.of(tmp_path), "a")
    assert line == "step 8 stalled for 61 s at rank 1 in reward.py:36 encode"
    assert pop_stall(Location.of(tmp_path), "a") is None, "read only once"


def test_the_stall_message_names_a_rank_without_a_report(tmp_path):
    write_reports(tmp_path, (0, True), (2, True))
    assert pop_stall(Location.of(tmp_path), "a") == "step 8 stalled for 61 s at rank 1"


def test_the_stall_message_does_not_name_ranks_that_a_smaller_group_does_not_have(tmp_path):
    """The settings asked for 32 ranks and Ray started 2."""
    write_reports(tmp_path, (0, True), (1, False), world=2)
    line = pop_stall(Location.of(tmp_path), "a")
    assert line == "step 8 stalled for 61 s at rank 1 in reward.py:36 encode"


def test_the_line_of_a_restart_is_known_after_a_stall_and_after_nothing_else(tmp_path):
    for waiting in ((True, False, True), (False, False, False), (True, True, True)):
        write_reports(tmp_path, *enumerate(waiting))
        stall = pop_stall(Location.of(tmp_path), "a")
        assert is_restart_after_stall(restart_line(stall, 1, 3)), stall
        assert not is_restart_after_stall(stall)
        assert not is_restart_after_stall(f"srpo: error: training failed 4 times: {stall}")
    assert not is_restart_after_stall(restart_line("worker 0 failed: RuntimeError: step 8 stalled", 1, 3))
