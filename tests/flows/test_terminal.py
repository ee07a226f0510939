import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID = "\nsrpo: error: interrupted; the same command goes on from here\n"

RUN = """
import io, os, signal, sys
from flows import terminal
signal.signal(signal.SIGINT, terminal._end_at_once)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Interrupted(io.RawIOBase):
    def writable(self):
        return True
    def write(self, data):
        interrupt()
        return len(data)

"""
ANYWHERE = "interrupt()"
IN_A_WRITE = "sys.stderr = io.TextIOWrapper(io.BufferedWriter(Interrupted())); print('progress', file=sys.stderr, flush=True)"
CLOSED = "os.close(2); interrupt()"


@pytest.mark.parametrize(
    ("moment", "said"),
    [(ANYWHERE, SAID), (IN_A_WRITE, SAID), (CLOSED, "")],
    ids=["anywhere", "in a write to the terminal", "with a closed terminal"],
)
def test_ctrl_c_ends_the_run_with_130_at_any_moment(moment, said):
    done = subprocess.run(
        [sys.executable, "-c", RUN + moment], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--profile", "huge"], "huge"),
        (["--set", "evaluate.num_prompts=0"], "evaluate.num_prompts"),
        (["--set", "select.keep={nothing: 0.1}"], "nothing"),
    ],
    ids=["profile", "range", "metric"],
)
def test_a_wrong_setting_is_one_line_before_a_server_starts(tmp_path, words, said):
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", "align", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("srpo: error: ")
    assert said in line
    assert not list((tmp_path / ".srpo/prefect").glob("*.db")), "no server has made its database"
