"""The whole pipeline, once, on a machine where everything that a run needs by default is missing or in the way."""

import os
import subprocess

import pytest
import short_pipeline
from closed_home import is_unchanged, make_closed_home

# nightly: a second run of the whole pipeline, of two minutes; unit tests cover each of its conditions
pytestmark = pytest.mark.nightly

STAGES = [
    *("ingest", "embed", "rollouts", "check_reward", "train"),
    *("select", "evaluate", "gate", "report", "quantize"),
]


def run(checkout, *words):
    """Run a command on a terminal of Latin-1."""
    done = subprocess.run(
        checkout.command(*words),
        cwd=checkout.path,
        env=checkout.environment,
        capture_output=True,
        encoding="latin-1",
        check=False,
    )
    assert not done.returncode, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Run the pipeline behind a dead proxy, in paths with any letter, with a home that cannot be written, on a terminal of Latin-1."""
    place = tmp_path_factory.mktemp("prüf stand")
    temporary = place / "a temporary directory, much too long for sockets, with an ä"
    temporary.mkdir()
    checkout = short_pipeline.make_checkout(place / "klön ß #1")
    for name in ("no_proxy", "NO_PROXY", "RAY_TMPDIR", "XDG_CACHE_HOME", "USER", "LOGNAME"):
        checkout.environment.pop(name, None)
    dead = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    checkout.environment |= {
        **dead,
        "ALL_PROXY": "socks5://127.0.0.1:9",
        "HOME": str(make_closed_home(place / "heim")),
        "TMPDIR": str(temporary),
        "SRPO_HOME": str(place / "eigenes zuhause é"),
        "SRPO_STORE": str(place / "läden"),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "latin-1",
    }
    return checkout, run(checkout, "align", "--profile", "tiny")


def test_every_stage_runs_and_the_model_is_published(hostile):
    checkout, done = hostile
    for stage in STAGES:
        assert f"+ {stage}" in done.stderr
    assert "verdict  passed" in done.stdout
    assert list((checkout.path.parent / "läden/models/tiny/versions").glob("*/manifest.json"))
    assert is_unchanged(checkout.path.parent / "heim")
    assert (checkout.path.parent / "eigenes zuhause é/user/ray_auth_token").is_file()


def test_the_doctor_names_what_was_replaced(hostile):
    checkout, _ = hostile
    lines = {line.split()[1]: line for line in run(checkout, "doctor").stdout.splitlines()}
    assert all(line.startswith("+ ") for line in lines.values()), lines
    replaced = lines["home"].partition("because they cannot be written elsewhere: ")[2].split(", ")
    assert {"MPLCONFIGDIR", "RAY_AUTH_TOKEN_PATH", "TRITON_HOME", "XDG_CACHE_HOME"} <= set(replaced)
    assert "HOME" not in replaced
    assert f"Ray's sockets are in /tmp/srpo-{os.geteuid()}" in lines["temporary"]
    assert "127.0.0.1" in lines["proxy"]
