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
