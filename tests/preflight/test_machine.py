"""`srpo doctor` names what a run cannot use on this machine, and what was replaced."""

import os
import stat
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.errors import ConfigError
from srpo_core.preflight import doctor
from srpo_core.preflight.doctor import examine
from srpo_core.runtime import machine as adapted
from srpo_core.runtime.machine import adapt_to_machine

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("home", "temporary", "proxy", "encoding", "prefect", "dvc")


@pytest.fixture
def found(monkeypatch, tmp_path):
    """A function that adapts the environment as the command line does, and returns the findings about the machine."""
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    for name in ("TMPDIR", "RAY_TMPDIR", "PREFECT_API_URL", "http_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "checkout/.dvc").mkdir(parents=True)
    (tmp_path / "checkout/.dvc/config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "user").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in CHECKS})

    def run(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for name in os.environ:  # restored after the test
            monkeypatch.setenv(name, os.environ[name])
        for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH", "no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, os.environ.get(name, ""))
        adapt_to_machine()
        return {finding.what: finding for finding in examine(settings)}

    return run


def test_a_machine_on_which_everything_works_has_a_good_line_each(found, tmp_path):
    lines = found()
    assert tuple(lines) == CHECKS
    assert all(finding.good for finding in lines.values())
    assert lines["home"].detail == str(tmp_path / "own")
    assert lines["temporary"].detail == "/tmp"
    assert lines["proxy"].detail == "none"


def test_a_home_that_cannot_be_read_is_good_because_another_is_used_and_is_named(found, tmp_path):
    finding = found(HOME=str(tmp_path / "file/home"))["home"]
    assert finding.good
    assert finding.detail == f"{tmp_path / 'own'}; below it, because they cannot be written elsewhere: HOME"
    assert stat.S_IMODE((tmp_path / "own").stat().st_mode) == 0o700


def test_a_home_of_this_project_that_cannot_be_written_is_reported(found, tmp_path):
    finding = found(SRPO_HOME=str(tmp_path / "file/own"))["home"]
    assert not finding.good
    assert str(tmp_path / "file/own") in finding.detail
    assert finding.detail.endswith(": set SRPO_HOME to a directory that you can write")


def test_a_place_for_rays_token_that_cannot_be_written_is_replaced_and_named(found, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "user/.ray").touch()
    finding = found()["home"]
    assert finding.good
    assert finding.detail.endswith(": RAY_AUTH_TOKEN_PATH")
    assert (tmp_path / "own/user/ray_auth_token").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["x" * 60, "tmpü"])
def test_a_temporary_directory_in_which_rays_sockets_do_not_fit_is_named_with_the_other(
    found, tmp_path, name
):
    (tmp_path / name).mkdir()
    finding = found(TMPDIR=str(tmp_path / name))["temporary"]
    assert finding.good
    assert finding.detail.startswith(
        f"{tmp_path / name}; Ray's sockets are in /tmp/srpo-{os.geteuid()}, because"
    )


def test_where_no_directory_is_short_enough_for_rays_sockets_that_is_reported(found, tmp_path, monkeypatch):
    monkeypatch.setattr(adapted, "SHARED_DIRECTORIES", ())
    finding = found(TMPDIR=str(tmp_path))["temporary"]
    assert not finding.good
    assert "set RAY_TMPDIR to one that you can write, of at most 39 bytes in ASCII" in finding.detail


def test_a_temporary_directory_that_cannot_be_written_is_replaced_with_a_warning(found, tmp_path, caplog):
    finding = found(TMPDIR=str(tmp_path / "none"))["temporary"]
    assert (finding.good, finding.detail) == (True, "/tmp")
    assert f"TMPDIR={tmp_path / 'none'} cannot be written: temporary files are in /tmp" in caplog.text


def test_a_proxy_is_named_with_what_is_reached_past_it(found):
    finding = found(http_proxy="http://127.0.0.1:9", NO_PROXY="corp.example")["proxy"]
    assert finding.good
    assert finding.detail.startswith("http_proxy; not for corp.example,localhost,127.0.0.1,::1")


def test_a_proxy_that_nothing_here_can_use_is_dropped_with_a_warning(found, caplog):
    assert found(all_proxy="socks5://127.0.0.1:7890")["proxy"].detail == "none"
    assert "all_proxy is ignored: Prefect's client cannot use such a proxy" in caplog.text


@pytest.mark.parametrize("proxy", ["alice:s3cretpw@proxy.corp:70000", "socks5://alice:s3cretpw@proxy.corp:1"])
def test_the_password_of_a_proxy_that_is_dropped_is_not_printed(found, caplog, proxy):
    assert found(http_proxy=proxy)["proxy"].detail == "none"
    assert "http_proxy is ignored" in caplog.text
    assert "s3cretpw" not in caplog.text


@pytest.mark.parametrize("address", [" ", "http://[::1/api", "me:s3cretpw@127.0.0.1:9/api"])
def test_what_is_no_address_of_prefects_server_is_unset_if_blank_and_else_reported(found, address):
    finding = found(PREFECT_API_URL=address)["prefect"]
    assert finding.good is (address == " ")
    assert finding.detail.startswith("each run starts its own server" if finding.good else "PREFECT_API_URL=")
    assert "s3cretpw" not in finding.detail


def test_a_dead_prefect_server_is_reported(found):
    finding = found(PREFECT_API_URL="http://127.0.0.1:9/api")["prefect"]
    assert not finding.good
    assert "no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:9/api" in finding.detail


def test_a_server_on_this_machine_is_asked_with_the_secret_of_the_project(found, tmp_path, monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200 if self.headers.get("Authorization") == "Basic c3Jwbzp4" else 401)
            self.end_headers()
            self.wfile.write(b"0")

        def log_message(self, *_):
            pass

    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/api"
        assert "refuses the secret (401)" in found(PREFECT_API_URL=address)["prefect"].detail
        (tmp_path / "own/prefect").mkdir()
        (tmp_path / "own/prefect/auth").write_text("srpo:x\n")
        assert found()["prefect"].detail == f"{address} answers"
        server.shutdown()


@pytest.mark.parametrize("name", ["config", "config.local"])
def test_a_damaged_configuration_of_dvc_is_reported(found, tmp_path, name):
    (tmp_path / "checkout/.dvc" / name).write_text("[remote\n")
    finding = found()["dvc"]
    assert not finding.good
    assert f".dvc/{name} is not a configuration that DVC can read" in finding.detail


def test_a_home_of_this_project_that_cannot_be_written_leaves_prefects_line_in_place(found, tmp_path):
    lines = found(SRPO_HOME=str(tmp_path / "file/own"), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert tuple(lines) == CHECKS
    assert not lines["prefect"].good


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/x"), ConfigError("models.lock cannot be read")]
)
def test_what_one_check_cannot_read_does_not_hide_the_others(found, monkeypatch, error):
    def broken(_):
        yield True, "one"
        raise error

    monkeypatch.setattr(doctor, "CHECKS", {"broken": broken, "dvc": doctor.CHECKS["dvc"]})
    settings = load_settings(ROOT / "profiles/tiny.yaml")
    assert [(finding.what, finding.good) for finding in examine(settings)] == [
        ("broken", True),
        ("broken", False),
        ("dvc", True),
    ]
