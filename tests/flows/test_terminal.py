import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = "\nsrpo: error: interrupted; repeat the same command to resume\n"

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
    ("moment", "message"),
    [(ANYWHERE, INTERRUPTED), (IN_A_WRITE, INTERRUPTED), (CLOSED, "")],
    ids=["anywhere", "in a write to the terminal", "with a closed terminal"],
)
def test_ctrl_c_ends_the_run_with_exit_code_130_at_any_time(moment, message):
    done = subprocess.run(
        [sys.executable, "-c", RUN + moment], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, message)


WRONG = {
    "profile": (["--profile", "huge"], "huge"),
    "range": (["--set", "evaluate.num_prompts=0"], "evaluate.num_prompts"),
    "metric": (["--set", "select.keep={nothing: 0.1}"], "nothing"),
}
EACH = """
import json, sys
from srpo_core.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = ["align", *words]
    try:
        main()
    except SystemExit as ended:
        print("exit code", ended.code, file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def wrong_settings(tmp_path_factory):
    """Run `srpo align` with each of the wrong settings, in one process; return what it printed and its directory."""
    directory = tmp_path_factory.mktemp("wrong")
    shutil.copytree(ROOT / "profiles", directory / "profiles")
    shutil.copy(ROOT / "params.yaml", directory)
    done = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps([words for words, _ in WRONG.values()])],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(WRONG), "one line of error and one of exit code each"
    return dict(zip(WRONG, zip(lines[::2], lines[1::2], strict=True), strict=True)), directory


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_gives_a_one_line_error_before_a_server_starts(wrong_settings, kind):
    printed, directory = wrong_settings
    error, exit_code = printed[kind]
    assert exit_code == "exit code 2"
    assert error.startswith("srpo: error: ")
    assert WRONG[kind][1] in error
    assert not list((directory / ".srpo/prefect").glob("*.db")), "no server has created its database"


def test_a_server_of_prefect_that_is_not_there_gives_one_line_before_a_flow_starts(tmp_path):
    for words in (["align"], ["data", str(ROOT / "assets/tiny/hpd")]):
        done = subprocess.run(
            [sys.executable, "-m", "srpo_core", *words],
            cwd=ROOT,
            env={**os.environ, "SRPO_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(
            "srpo: error: no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9/api ("
        )
        assert done.stderr.count("\n") == 1
