import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from screen import run_on_terminal

from srpo_core.runtime import progress
from srpo_core.runtime.progress import (
    progress_bar,
    read_report,
    reporting,
    seconds_left,
    share_done,
    with_progress,
    without_reports,
)

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(progress, "time", own)
    return own


@pytest.fixture
def report(tmp_path, monkeypatch):
    """The file that this process was asked to report to."""
    path = tmp_path / "asked/progress"
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SRPO_PROGRESS", str(path))
    return path


def shown(path):
    found = read_report(path)
    return None if found is None else (found.label, found.done, found.total)


def test_items_keep_their_order_and_nothing_is_printed_or_written_without_a_terminal(
    capfd, tmp_path, monkeypatch
):
    monkeypatch.delenv("SRPO_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert list(with_progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [False, True], ids=["nobody asked", "asked for reports"])
def test_a_terminal_shows_a_bar_that_leaves_nothing_unless_reports_are_asked_for(tmp_path, asked):
    code = (
        "from srpo_core.runtime.progress import with_progress\n"
        "print('before', *with_progress([1, 2], 'numbers'), 'after')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI")}
    environment |= {"TERM": "xterm", **({"SRPO_PROGRESS": str(tmp_path / "report")} if asked else {})}
    status, screen, written = run_on_terminal([sys.executable, "-c", code], cwd=ROOT, environment=environment)
    assert (status, screen.lines) == (0, ["before 1 2 after"])
    assert ("numbers" in "".join(written)) is not asked


def test_each_item_is_reported_in_a_file_that_goes_at_the_end(report, clock):
    seen = []
    for item in with_progress("abc", "letters"):
        seen.append((item, shown(report)))
        clock.now += 1
    assert seen == [("a", ("letters", 0, 3)), ("b", ("letters", 1, 3)), ("c", ("letters", 2, 3))]
    assert not report.exists()


def test_a_report_is_one_line_of_json(report, clock):
    with reporting("write formats", 8, done=2) as advance:
        clock.now += 3
        advance(1)
        assert json.loads(report.read_text()) == {
            "label": "write formats",
            "done": 3,
            "total": 8,
            "left": 15.0,
            "at": 103.0,
            "began": 100.0,
        }
        assert report.read_text().count("\n") == 1
        assert [path.name for path in report.parent.iterdir()] == ["progress"]


def test_what_is_nested_is_reported_until_it_ends(report, clock):
    with progress_bar("generate base", 20) as advance:
        clock.now += 1
        advance(4)
        with reporting("load the model") as nested:
            assert shown(report) == ("load the model", None, None)
            nested(1)  # nothing is counted
            assert shown(report) == ("load the model", None, None)
        assert shown(report) == ("generate base", 4, 20)
    assert not report.exists()


def test_what_follows_at_once_is_reported_with_the_next_item_and_the_last_item_always(report, clock):
    with progress_bar("step", 4) as advance:
        clock.now += 1
        advance(1)
        advance(1)
        assert shown(report) == ("step", 1, 4)
        clock.now += progress.LEAST_SECONDS
        advance(1)
        assert shown(report) == ("step", 3, 4)
        advance(1)
        assert shown(report) == ("step", 4, 4)


def test_the_time_left_is_that_of_the_items_after_the_first_one_which_also_loads_the_model(report, clock):
    with progress_bar("batch", 10) as advance:
        assert read_report(report).left is None
        for seconds, left in ((30, 270), (2, 16), (2, 14), (6, 20)):
            clock.now += seconds
            advance(1)
            assert read_report(report).left == pytest.approx(left)
    clock.now += 5
    assert seconds_left(progress.Report(label="x", left=20, at=clock.now - 5, began=0)) == 15
    assert seconds_left(progress.Report(label="x", left=2, at=clock.now - 5, began=0)) == 0


def test_what_cannot_be_counted_takes_as_long_as_it_took_last(report, clock):
    for before, took in ((None, 12), (12, 30), (30, 30)):
        with reporting("start Ray"):
            found = read_report(report)
            assert (found.total, found.left) == (None, before)
            clock.now += took / 2
            if before:
                assert share_done(found) == pytest.approx(min(0.99, took / 2 / before))
                assert seconds_left(found) == max(0, before - took / 2)
            clock.now += took / 2
    with pytest.raises(OSError, match="no Ray"), reporting("start Ray"):
        clock.now += 1000
        raise OSError("no Ray")
    with reporting("start Ray"):
        assert read_report(report).left == 30, "one that failed does not count"
        with reporting("another thing"):
            assert read_report(report).left is None


@pytest.mark.parametrize("text", ["", "12", "nan\n", "\ud800"])
def test_an_earlier_time_that_is_damaged_is_no_time(report, tmp_path, text):
    file = tmp_path / "home/timings/awaited/start-Ray"
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode(errors="surrogatepass"))
    with reporting("start Ray"):
        assert read_report(report).left is None
    assert re.fullmatch(r"0\.\d{3}\n", file.read_text())


def test_training_that_goes_back_to_its_checkpoint_is_reported_without_a_time(report, clock):
    with reporting("step", 30, done=10) as advance:
        for number, expected in ((5, 15), (-5, 10)):
            clock.now += 1
            advance(number)
            assert shown(report) == ("step", expected, 30)
    assert read_report(report) is None


def test_no_item_is_lost_if_several_threads_advance(report):
    with progress_bar("upload", 800) as advance:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(advance, [1] * 800))
        assert shown(report) == ("upload", 800, 800)


@pytest.mark.parametrize("fault", ["a file above it", "a directory in its place", "a full disk"])
def test_a_report_that_cannot_be_written_ends_nothing_and_prints_nothing(
    fault, tmp_path, monkeypatch, capfd, caplog
):
    path = tmp_path / "report"
    if fault == "a file above it":
        path.write_text("")
        path /= "below"
    elif fault == "a directory in its place":
        (path / "below").mkdir(parents=True)
    else:
        full = OSError(28, "No space left on device")
        monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(full))
    monkeypatch.setenv("SRPO_PROGRESS", str(path))
    (tmp_path / "home").write_text("no directory")
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    assert list(with_progress("abc", "letters")) == ["a", "b", "c"]
    with reporting("start Ray"):
        pass
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not list(tmp_path.rglob("*.part"))


def test_processes_that_start_without_reports_are_not_asked_for_them(report):
    command = [sys.executable, "-c", "import os; print(os.environ.get('SRPO_PROGRESS'))"]
    with reporting("start Ray"), without_reports():
        inside = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert shown(report) == ("start Ray", None, None)
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (inside, after) == ("None\n", f"{report}\n")


@pytest.mark.parametrize("text", ["", "{", '{"label": 3}', "null"])
def test_a_file_without_a_report_is_none(tmp_path, text):
    (tmp_path / "report").write_text(text)
    assert read_report(tmp_path / "report") is None
