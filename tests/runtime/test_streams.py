"""The command line prints on every terminal and ends quietly if nobody reads what it prints."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from srpo_core.runtime.streams import CLOSED_PIPE, has_lost_reader, prepare_streams

ROOT = Path(__file__).resolve().parents[2]
TEXT = "✓ größer ≥ 3 – é ▸ 日 \udcff"
PLAIN = "+ größer >= 3 - é > ? ?"

PRINT = f"""
import sys
from srpo_core.runtime.streams import prepare_streams
prepare_streams()
print({TEXT!r})
print({TEXT!r}, file=sys.stderr)
"""
SHOW = """
import sys
from srpo_core.cli import main
print(sys.flags.utf8_mode, file=sys.stderr)
main.main()
"""
DISPLAY = """
import logging, time
from rich.console import Console
from flows.display import StageDisplay
log = logging.getLogger("run")
log.addHandler(StageDisplay(Console(stderr=True)))
for _ in range(1000):
    log.warning("line")
    time.sleep(0.01)
"""


def run(code, *arguments, encoding="utf-8", cwd=ROOT, **variables):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **variables},
        capture_output=True,
        text=True,
        encoding=encoding,
        check=False,
    )


@pytest.mark.parametrize("errors", ["", ":strict"])
def test_letters_that_the_encoding_lacks_are_printed_as_similar_ones(errors):
    done = run(PRINT, encoding="latin-1", PYTHONIOENCODING=f"latin-1{errors}")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (f"{PLAIN}\n", f"{PLAIN}\n")


def test_utf8_is_printed_unchanged_but_for_file_names_that_are_not_text(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
    prepare_streams()
    print(TEXT, flush=True)
    assert raw.getvalue().decode() == TEXT.replace("\udcff", "?") + "\n"


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"LC_ALL": "", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=["LC_ALL=C", "LANG=C", "LC_ALL=C and latin-1"],
)
def test_in_a_locale_that_is_not_utf8_a_command_restarts_once_and_reads_utf8(tmp_path, locale):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/größe.yaml").write_text("# ✓ größer\n", encoding="utf-8")
    latin = "latin-1" if "PYTHONIOENCODING" in locale else "utf-8"
    done = run(SHOW, "profile", "größe", encoding=latin, cwd=tmp_path, PYTHONPATH=str(ROOT), **locale)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("# + größer\n" if latin == "latin-1" else "# ✓ größer\n")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["0", "1"]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_with_closed_standard_streams(closed):
    command = f"{sys.executable} -m srpo_core profile tiny {closed}"
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout == (ROOT / "profiles/tiny.yaml").read_text()) == (
        ">&-" not in closed.replace("2>&-", "")
    )


@pytest.mark.parametrize("words", [["profile", "tiny"], ["--help"], ["profile", "none"]])
def test_a_command_whose_output_nobody_reads_ends_without_a_word(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "srpo_core", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=pipe if words[-1] == "none" else subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == (1 if words == ["--help"] else CLOSED_PIPE), "rich has its own code"
    assert not done.stderr


def test_a_run_whose_progress_nobody_reads_ends_without_a_word():
    process = subprocess.Popen([sys.executable, "-c", DISPLAY], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "line\n"
    process.stderr.close()
    assert process.wait(60) == CLOSED_PIPE


def test_output_that_is_read_has_a_reader():
    assert not has_lost_reader()
