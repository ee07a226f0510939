"""What is notified of a Prefect server that does not answer; tests/flows/test_deployment.py has one with a late run."""

import socket

import pytest

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.late_runs import UNANSWERED, LateWatch, notify_late


@pytest.fixture
def closed(monkeypatch, tmp_path):
    """PREFECT_API_URL is a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))


def test_without_a_server_there_is_nothing_to_ask(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match="PREFECT_API_URL is not set: set it to"):
        notify_late(lambda _: True, tmp_path / "late.json")


def test_one_check_of_a_server_that_does_not_answer_fails(closed, tmp_path):
    with pytest.raises(SrpoError, match="no Prefect server answers at PREFECT_API_URL="):
        notify_late(lambda _: True, tmp_path / "late.json")
    assert not (tmp_path / "late.json").exists()


def test_a_watch_notifies_once_of_a_server_that_has_not_answered_several_times(closed):
    sent = []
    watch = LateWatch(lambda message: sent.append(message) or True)
    for number in range(1, UNANSWERED + 3):
        assert "no Prefect server answers" in watch.check()
        assert len(sent) == (number >= UNANSWERED)
    assert sent[0].title == "SRPO late schedule: Prefect server"
    assert sent[0].body.startswith(
        "no schedule starts, because the Prefect server has not answered 5 times: no Prefect"
    )


def test_a_watch_ends_if_its_address_can_never_be_asked(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "localhost")
    with pytest.raises(ConfigError, match="is not an address"):
        LateWatch(lambda _: True).check()
