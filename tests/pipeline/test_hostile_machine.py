"""The whole pipeline, once, on a machine where everything that a run needs by default is missing or in the way."""

import os

import pytest
import short_pipeline

# nightly: a second run of the whole pipeline, of two minutes; unit tests cover each of its conditions
pytestmark = pytest.mark.nightly

STAGES = ["ingest", "embed", "check_reward", "train", "select", "evaluate", "gate", "report", "quantize"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Run the pipeline behind a dead proxy, in paths with any letter, without a home, on a terminal of Latin-1."""
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
        "HOME": str(place / "none/home"),
        "TMPDIR": str(temporary),
        "SRPO_HOME": str(place / "eigenes zuhause é"),
        "SRPO_STORE": str(place / "läden"),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "utf-8",
    }
    return checkout, checkout.srpo("align", "--profile", "tiny")


def test_every_stage_runs_and_the_model_is_published(hostile):
    checkout, done = hostile
    for stage in STAGES:
        assert f"✓ {stage}" in done.stderr
    assert "verdict  passed" in done.stdout
    assert list((checkout.path.parent / "läden/models/tiny/versions").glob("*/manifest.json"))
    assert not (checkout.path.parent / "none").exists()
    assert (checkout.path.parent / "eigenes zuhause é/user/.ray/auth_token").is_file()


def test_the_doctor_names_what_was_replaced_on_a_terminal_of_latin_1(hostile):
    checkout, _ = hostile
    command = checkout.command("doctor")
    done = checkout.run(
        "sh", "-c", '"$@" | iconv -f latin1 -t utf8', "sh", *command, PYTHONIOENCODING="latin-1"
    )
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert all(line.startswith("+ ") for line in lines.values()), done.stdout
    assert "because they cannot be written elsewhere: HOME" in lines["home"]
    assert f"Ray's sockets are in /tmp/srpo-{os.geteuid()}" in lines["temporary"]
    assert "127.0.0.1" in lines["proxy"]
