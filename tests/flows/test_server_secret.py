"""The secret of the project's own Prefect servers."""

import json
import os
import shlex
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from flows.server_secret import (
    CLIENT_SECRET,
    HEARTBEATS,
    ORIGINS,
    SERVER_SECRET,
    SLOTS,
    SLOTS_IN_FILES,
    read_or_make_secret,
    server_environment,
)
from srpo_core.errors import ConfigError
from srpo_core.runtime.prefect_api import require_prefect_server

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = (SERVER_SECRET, CLIENT_SECRET, ORIGINS, "PREFECT_API_URL")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_the_secret_is_made_once_for_its_user_alone_also_by_simultaneous_processes(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: read_or_make_secret(tmp_path), range(16)))
    (secret,) = found
    assert secret.startswith("srpo:")
    assert len(secret) > 40
    assert stat.S_IMODE((tmp_path / "prefect/auth").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "prefect").iterdir()] == ["auth"]
    assert read_or_make_secret(tmp_path / "other") != secret


@pytest.mark.parametrize("fault", ["empty", "open"])
def test_a_damaged_secret_or_one_that_others_can_read_is_refused(tmp_path, fault):
    read_or_make_secret(tmp_path)
    if fault == "empty":
        (tmp_path / "prefect/auth").write_text("")
    else:
        (tmp_path / "prefect/auth").chmod(0o644)
    with pytest.raises(ConfigError, match="is damaged, or other users can read it: remove it"):
        read_or_make_secret(tmp_path)


def test_variables_of_the_user_are_kept_and_no_secret_is_made_then(tmp_path, monkeypatch):
    monkeypatch.setenv(SERVER_SECRET, "me:mine")
    monkeypatch.setenv(ORIGINS, "https://dashboard.example")
    monkeypatch.setenv(HEARTBEATS, "120")
    assert server_environment(tmp_path) == {
        SERVER_SECRET: "me:mine",
        CLIENT_SECRET: "me:mine",
        ORIGINS: "https://dashboard.example",
        SLOTS: SLOTS_IN_FILES,
        HEARTBEATS: "120",
    }
    assert list(tmp_path.iterdir()) == []


PREPARED = """
import json, os, sys
from flows.environment import prepare_environment
prepare_environment()
print(json.dumps({name: os.environ.get(name) for name in sys.argv[1:]}))
"""


@pytest.mark.parametrize(
    ("address", "has_server", "has_client"),
    [
        (None, True, True),
        ("http://127.0.0.1:4200/api", False, True),
        ("https://prefect.example/api", False, False),
    ],
    ids=["own", "this machine", "remote"],
)
def test_a_run_protects_its_own_server_and_sends_the_secret_to_no_other_machine(
    tmp_path, address, has_server, has_client
):
    given = {"PREFECT_API_URL": address} if address else {}
    done = subprocess.run(
        [sys.executable, "-c", PREPARED, *VARIABLES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), **given},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found[SERVER_SECRET] is not None) is has_server
    assert (found[CLIENT_SECRET] is not None) is has_client
    assert (found[ORIGINS] not in (None, "*")) is has_server


def test_blanks_and_line_breaks_at_the_ends_of_prefects_variables_do_not_reach_its_client(tmp_path):
    """A blank address means none; what is no address is reported by who asks the server, not here."""
    given = {"PREFECT_API_URL": " ", "PREFECT_API_KEY": "key\n", CLIENT_SECRET: "u:p\n"}

    def prepared(**changed):
        done = subprocess.run(
            [sys.executable, "-c", PREPARED, *VARIABLES, "PREFECT_API_KEY"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **given, **changed},
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    found = prepared()
    assert found["PREFECT_API_URL"] is None
    assert found[SERVER_SECRET] == found[CLIENT_SECRET] == "u:p"
    assert found["PREFECT_API_KEY"] == "key"
    assert prepared(PREFECT_API_URL="http://[::1/api ")["PREFECT_API_URL"] == "http://[::1/api"


def test_the_command_prints_variables_that_a_shell_reads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", "server-environment"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "http_proxy": "http://127.0.0.1:9",
            "NO_PROXY": "a.example",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    assert {pair[0] for pair in words} == {"export"}
    found = dict(pair[1].split("=", 1) for pair in words)
    secret = (tmp_path / ".srpo/prefect/auth").read_text().strip()
    assert found[SERVER_SECRET] == found[CLIENT_SECRET] == secret
    assert found["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert "*" not in found[ORIGINS]
    for name in ("no_proxy", "NO_PROXY"):  # a worker behind a proxy reaches the server
        assert found[name].startswith("a.example,localhost,127.0.0.1,::1")


@pytest.mark.pipeline
@pytest.mark.parametrize("secret", [None, "Basic c3JwbzpndWVzc2Vk"], ids=["none", "guessed"])
def test_a_foreign_page_cannot_create_a_deployment_on_a_server_started_as_documented(prefect_server, secret):
    headers = {
        "Origin": "https://evil.example",
        "Content-Type": "text/plain",
    }  # what a page may send anywhere
    if secret:
        headers["Authorization"] = secret
    body = json.dumps({"name": "evil"}).encode()
    request = urllib.request.Request(f"{prefect_server.url}/flows/", body, headers)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == HTTPStatus.UNAUTHORIZED
    assert caught.value.headers.get("Access-Control-Allow-Origin") is None
    assert prefect_server.call("/flows/filter", {"flows": {"name": {"any_": ["evil"]}}}) == []


@pytest.mark.pipeline
def test_a_real_server_is_recognised_with_its_secret_and_refuses_another(prefect_server):
    address = {"PREFECT_API_URL": prefect_server.url}
    require_prefect_server({**address, CLIENT_SECRET: prefect_server.secret})
    with pytest.raises(ConfigError, match=r"refuses the secret \(401\)"):
        require_prefect_server({**address, CLIENT_SECRET: "srpo:another"})
