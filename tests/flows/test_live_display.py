import io
import logging
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from screen import Screen, open_terminal, read_terminal, run_on_terminal
from standin import ROOT, git, keep_stages

from flows import display, live_display
from flows.live_display import LiveStages, can_move
from srpo_core.runtime.progress import Report

PLAIN = ("NO_COLOR", "CI", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR")
STAGES = ["ingest", "train", "select", "evaluate", "gate", "report", "quantize", "publish", "verify"]


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now

    monotonic = __call__


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr("srpo_core.runtime.progress.time", own)
    return own


@pytest.fixture
def stages(tmp_path, clock):
    return LiveStages(tmp_path / "report", "start the run", clock)


def on_terminal(**changes):
    """Return the environment of a command on a terminal whose lines can move."""
    given = {**os.environ, **changes, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    fixed = (
        *PLAIN,
        "SRPO_PROGRESS",
        "COLUMNS",
        "LINES",
    )  # pytest's workers have COLUMNS, and a terminal's size would not count
    return {name: value for name, value in given.items() if name not in fixed}


def report(tmp_path, clock, label, done=None, total=None, left=None):
    value = Report(label=label, done=done, total=total, left=left, at=clock.now, began=clock.now)
    (tmp_path / "report").write_text(value.model_dump_json())


def rows(stages, width=78):
    console = Console(file=io.StringIO(), width=200)
    console.print(stages.render(width))
    return [row.rstrip() for row in console.file.getvalue().splitlines()]


def bar_of(row):
    return re.search("[━─]+", row)[0]


def test_before_the_first_stage_its_start_and_the_time_are_shown(stages, clock):
    clock.now += 65
    start, times = rows(stages)
    assert re.fullmatch(" 1:05  start the run  [━─]{30}", start)
    assert times == "1:05 elapsed"


def test_stages_done_running_and_to_come_are_shown_with_the_bar_and_the_figures(stages, clock, tmp_path):
    stages.plan(STAGES, {})
    for stage in ("ingest", "train"):
        stages.change("started", stage)
        clock.now += 10
        stages.take(f"this is {stage}")
        if stage == "ingest":
            stages.change("finished", stage)
    report(tmp_path, clock, "step", 12, 30, left=75)
    stages.take("step 12 of 30  loss 0.51  reward 0.30")
    stages.take("6 workers")
    clock.now += 5
    one, two, running, figures, times = rows(stages)
    assert one == "✓ ingest  ▸ train  · select  · evaluate  · gate  · report  · quantize"
    assert two == "· publish  · verify"
    bar = bar_of(running)
    assert running == f" 0:15  train  step 12 of 30  {bar}   40%  1:10 left"
    assert (bar.count("━"), len(bar)) == (12, 30)
    assert figures == "step 12 of 30  loss 0.51  reward 0.30"
    assert times == "0:25 elapsed"


def test_a_skipped_and_a_failed_stage_have_their_marks_and_nothing_is_running(stages):
    stages.plan(["gate", "quantize", "publish"], {})
    stages.change("started", "gate")
    stages.change("failed", "gate")
    stages.change("skipped", "quantize")
    assert rows(stages) == ["✗ gate  – quantize  · publish", "0:00 elapsed"]


def test_earlier_times_give_the_time_left_of_a_stage_that_reports_nothing_and_of_the_run(
    stages, clock, tmp_path
):
    usual = {"train": 40.0, "gate": 10.0, "publish": 0.0}
    stages.plan(["train", "gate", "publish"], usual)
    stages.change("started", "train")
    clock.now += 10
    report(tmp_path, clock, "start Ray")
    _, running, times = rows(stages)
    assert running.startswith(" 0:10  train  start Ray  ━━━━━")
    assert running.endswith("   25%  0:30 left")
    assert times == "0:10 elapsed, about 0:40 left"
    clock.now += 35
    report(tmp_path, clock, "step", 1, 4, left=90)  # slower than before
    _, running, times = rows(stages)
    assert running.endswith("   25%  1:30 left")
    assert times == "0:45 elapsed, about 1:40 left"
    stages.change("finished", "train")
    (tmp_path / "report").unlink()
    assert rows(stages) == ["✓ train  · gate  · publish", "0:45 elapsed, about 0:10 left"]


def test_the_bar_of_a_stage_that_takes_longer_than_before_does_not_claim_its_end(stages, clock):
    stages.plan(["train"], {"train": 20.0})
    stages.change("started", "train")
    clock.now += 300
    _, running, times = rows(stages)
    assert running.endswith("   99%")
    assert times == "5:00 elapsed"


def test_the_start_of_ray_has_a_bar_and_a_time_if_it_has_started_on_this_machine_before(
    stages, clock, tmp_path
):
    stages.plan(["train"], {})
    stages.change("started", "train")
    report(tmp_path, clock, "start Ray", left=12)
    clock.now += 9
    running = rows(stages)[1]
    assert running.startswith(" 0:09  train  start Ray  ━━━")
    assert running.endswith("   75%  0:03 left")


def test_a_count_of_weights_or_bytes_is_shown_as_a_share_only(stages, clock, tmp_path):
    stages.plan(["quantize"], {})
    stages.change("started", "quantize")
    report(tmp_path, clock, "write formats", 3_000_000_000, 12_000_000_000, left=3700)
    assert re.fullmatch(" 0:00  quantize  write formats  ━+─+   25%  1:01:40 left", rows(stages)[1])


def test_the_mark_of_a_bar_without_an_end_moves(stages, clock):
    stages.plan(["train"], {})
    stages.change("started", "train")
    places = set()
    for _ in range(8):
        clock.now += 0.25
        places.add(bar_of(rows(stages)[1]).index("━"))
    assert len(places) == 8


@pytest.mark.parametrize("width", [1, 8, 20, 33, 50, 78])
def test_no_line_is_wider_than_the_terminal(stages, clock, tmp_path, width):
    stages.plan([*STAGES, "a_stage_with_a_very_long_name_indeed"], {})
    stages.change("started", STAGES[3])
    stages.take("step 1 of 30  " + "loss 0.5  " * 20)
    report(tmp_path, clock, "generate step 10 " * 5, 12, 30, left=75)
    assert max(map(len, rows(stages, width))) <= width


@pytest.mark.parametrize(
    ("terminal", "variables", "moves"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": ""}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"CI": "true"}, False),
        (True, {"CI": "false"}, True),
        (True, {"TTY_INTERACTIVE": "0"}, False),
    ],
)
def test_lines_move_on_a_terminal_only_and_not_if_plain_lines_are_asked_for(
    terminal, variables, moves, monkeypatch
):
    for name, value in ({**dict.fromkeys(PLAIN), "TERM": "xterm"} | variables).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    file = io.StringIO()
    file.isatty = lambda: terminal
    assert can_move(Console(file=file)) is moves


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    """A stream to a pseudo terminal, and a function that returns the screen and all that was written to it."""
    for name in PLAIN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("SRPO_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    reading, writing = open_terminal()
    stream = os.fdopen(writing, "w", encoding="utf-8")

    def end():
        stream.close()
        screen = Screen()
        written = list(read_terminal(reading))
        os.close(reading)
        for text in written:
            screen.feed(text)
        return screen, "".join(written)

    return stream, end


def log_of_a_run(handler, name):
    logger = logging.Logger(name)
    logger.addHandler(handler)
    return logger


def test_what_is_printed_scrolls_above_and_the_screen_keeps_these_lines_alone(terminal, monkeypatch):
    stream, end = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    shown = display.StageDisplay(Console(file=stream, highlight=False))
    log = log_of_a_run(shown, "run")
    root = logging.StreamHandler(stream)
    root.setFormatter(logging.Formatter("%(message)s"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [root])
    with shown.showing("start the run"):
        asked = os.environ["SRPO_PROGRESS"]
        log.info("stages", extra=display.planned(["train", "gate"], {}))
        log.info("x", extra=display.started("train", "learns"))
        log.info("step 5 of 30  loss %s", "1" * 90, extra=display.output())
        logging.getLogger("srpo_core.release").warning("a warning\nof two lines")
        print("from a library", file=sys.stderr)
        print("the rest of a line", end="", file=sys.stderr)
        log.info("x", extra=display.finished("train", "done in 3.0 s"))
    assert sys.stderr is stream
    assert root.stream is stream
    assert "SRPO_PROGRESS" not in os.environ
    assert not os.path.exists(asked)  # noqa: PTH110
    print("the verdict", file=sys.stderr)
    screen, written = end()
    long = "    step 5 of 30  loss " + "1" * 90
    assert screen.lines == [
        "▸ train         learns",
        long[:80],
        long[80:],
        "a warning",
        "of two lines",
        "from a library",
        "✓ train         done in 3.0 s",
        "the rest of a line",
        "the verdict",
    ]
    assert screen.cursor_is_visible
    assert "▸ \x1b[0m\x1b[1mtrain" in written
    assert "\x1b[1A" in written, "the lines of the stages were replaced"


def test_without_a_moving_terminal_the_same_lines_are_printed_and_nothing_is_asked_for(monkeypatch):
    monkeypatch.delenv("SRPO_PROGRESS", raising=False)
    console = Console(file=io.StringIO(), width=60)
    shown = display.StageDisplay(console)
    log = log_of_a_run(shown, "run")
    with shown.showing("start the run"):
        assert "SRPO_PROGRESS" not in os.environ
        log.info("stages", extra=display.planned(["train"], {}))
        log.info("x", extra=display.started("train", "learns"))
        log.info("x", extra=display.finished("train", "done in 3.0 s"))
    assert console.file.getvalue() == "▸ train         learns\n✓ train         done in 3.0 s\n"


def test_an_error_and_hiding_twice_leave_the_terminal_as_it_was(terminal, monkeypatch):
    stream, end = terminal
    monkeypatch.setattr(sys, "stderr", stream)
    shown = display.StageDisplay(Console(file=stream, highlight=False))
    with pytest.raises(ValueError, match="broken"), shown.showing("start the run"):
        shown.hide()
        os.write(stream.fileno(), b"srpo: error: lost\n")
        shown.hide()
        raise ValueError("broken")
    assert sys.stderr is stream
    assert end()[0].lines == ["srpo: error: lost"]


def test_the_file_of_the_user_is_used_and_those_of_dead_runs_are_removed(terminal, tmp_path, monkeypatch):
    stream, end = terminal
    left = tmp_path / "home/progress/1.0.pid:[1]"
    left.parent.mkdir(parents=True)
    left.write_text("")
    console = Console(file=stream, highlight=False)
    with live_display.live_lines(console, "start"):
        assert not left.exists()
        own = os.environ["SRPO_PROGRESS"]
    monkeypatch.setenv("SRPO_PROGRESS", str(tmp_path / "mine"))
    with live_display.live_lines(console, "start"):
        assert os.environ["SRPO_PROGRESS"] == str(tmp_path / "mine") != own
    assert os.environ["SRPO_PROGRESS"] == str(tmp_path / "mine")
    end()


REPORTING = """
if stage == "train":
    for step in range(1, 5):
        now = time.monotonic()
        line = {"label": "step", "done": step, "total": 4, "left": 4.0 - step, "at": now, "began": now - step}
        new = Path(os.environ["SRPO_PROGRESS"] + ".new")
        new.write_text(json.dumps(line))
        new.replace(os.environ["SRPO_PROGRESS"])
        print(f"step {step} of 4  loss 0.{step}", flush=True)
        time.sleep(1)  # several times as long as the time between two frames
    os.remove(os.environ["SRPO_PROGRESS"])
"""
LINES = """\
▸ train         takes time
    this is train
    step 1 of 4  loss 0.1
    step 2 of 4  loss 0.2
    step 3 of 4  loss 0.3
    step 4 of 4  loss 0.4
✓ train         done in N s
▸ gate          decides
    this is gate
✓ gate          done in N s
▸ report        writes one page
    this is report
✓ report        done in N s
verdict  passed: as the resamples say.
report   .srpo/report.html
results  runs
release  none"""


@pytest.mark.pipeline
def test_a_run_shows_its_stages_and_a_bar_that_advances_and_leaves_the_lines_of_a_piped_run(
    standin, prefect_server
):
    keep_stages(standin, "train", "gate", "report")
    steps = standin / "steps.py"
    weights = '(out / "weights.txt").write_text(f"{size} images")'
    text = re.sub(r'\(out / "weights.txt"\).*', weights, steps.read_text())
    steps.write_text(text + REPORTING)
    git(standin, "commit", "--quiet", "--all", "-m", "training that reports")
    command = [sys.executable, "-m", "srpo_core", "align", "--no-publish"]
    environment = on_terminal(**prefect_server.environment)
    environment.pop("SRPO_HOME", None)
    code, screen, written = run_on_terminal(command, cwd=standin, environment=environment, width=100)
    assert code == 0, screen.lines
    assert re.sub(r"\d+\.\d s", "N s", "\n".join(screen.lines)) == LINES
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(written))
    assert "▸ train  · gate  · report" in shown
    assert "✓ train  ✓ gate  ▸ report" in shown
    seen = [int(step) for step in re.findall(r"train  step (\d) of 4  [━─]+ +\d+%  0:0\d left", shown)]
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert not list((standin / ".srpo/progress").iterdir())

    piped = subprocess.run(command, cwd=standin, env=environment, capture_output=True, text=True, check=True)
    assert "\x1b" not in piped.stderr + piped.stdout
    again = [line for line in LINES.splitlines() if not line.startswith("    ")]
    lines = re.sub(r"cached in \d+\.\d s", "done in N s", piped.stderr + piped.stdout).splitlines()
    assert lines == again


RESIZED = """
import fcntl, struct, sys, termios, time
from rich.console import Console
from flows import display
shown = display.StageDisplay(Console(file=sys.stderr))
with shown.showing("start the run"):
    shown._live.plan(["a_stage_of_some_length"] + [f"stage_{number}" for number in range(9)], {})
    for width in (100, 40, 12, 100):
        fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
        print("width", width, file=sys.stderr)
        time.sleep(0.6)  # a frame that was begun before, and the next one
        print("frames", file=sys.stderr)
        time.sleep(0.6)
"""


def test_a_window_that_changes_its_width_gets_lines_that_fit(tmp_path):
    code, screen, written = run_on_terminal(
        [sys.executable, "-c", RESIZED], cwd=ROOT, environment=on_terminal(SRPO_HOME=str(tmp_path)), width=100
    )
    assert code == 0, screen.lines
    assert screen.lines == [line for width in (100, 40, 12, 100) for line in (f"width {width}", "frames")]
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", "".join(written))
    for width in (100, 40, 12):
        frames = text.partition(f"width {width}\r\n")[2].partition("frames\r\n")[2].partition("width")[0]
        longest = max(map(len, re.split(r"[\r\n]+", frames)))
        assert min(width - 1, 78) - 12 <= longest <= width, (width, frames)


INTERRUPTED = """
import os, signal, sys, time
from rich.console import Console
from flows import display, terminal
signal.signal(signal.SIGINT, terminal._end_at_once)
shown = display.StageDisplay(Console(file=sys.stderr))
with shown.showing("start the run"):
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_leaves_a_visible_cursor_and_its_message_on_a_line_of_its_own(tmp_path):
    code, screen, _ = run_on_terminal(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, environment=on_terminal(SRPO_HOME=str(tmp_path))
    )
    assert code == 130
    assert screen.lines[-1] == "srpo: error: interrupted; repeat the same command to resume"
    assert screen.lines[-2].endswith(" elapsed")
    assert screen.cursor_is_visible
