"""The commands that send messages, and the one that tries the channels."""

import sys
from pathlib import Path

import pytest
from small_release import publish_small

from srpo_core.cli.main import main
from srpo_core.config import load_settings
from srpo_core.preflight.doctor import CHECKS
from srpo_core.storage import open_store, version_key

ROOT = Path(__file__).parents[2]


@pytest.fixture
def srpo(monkeypatch, capsys):
    """A function that runs a command in this process, and returns its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, *capsys.readouterr()

    monkeypatch.setenv("NO_COLOR", "1")
    return run


@pytest.fixture
def store(tmp_path, monkeypatch, receiver):
    """The current store, with three versions."""
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    monkeypatch.chdir(tmp_path)
    store = open_store()
    for number in (1, 2, 3):
        publish_small(store, tmp_path, number, more={"grid.png": b"GRID", "report.html": b"<p>"})
    return store


def test_promote_and_rollback_send_who_moved_production_why_and_the_links(srpo, store, receiver, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    for line in (
        "promote tiny-1",
        "promote tiny-2 --reason sharper",
        "rollback --reason blurred",
        "promote tiny-1",
    ):
        assert srpo(*line.split())[0] == 0
    assert receiver.titles(3) == [
        "SRPO promoted: tiny, tiny-1",
        "SRPO promoted: tiny, tiny-2",
        "SRPO rolled back: tiny, tiny-1",
    ]
    cause, grid, report = receiver.body("SRPO promoted: tiny, tiny-2")
    assert cause == "tiny/production: tiny-1 → tiny-2, by alice: sharper"
    assert grid.startswith(f"grid: {store.local('tiny-2')}/grid.png on ")
    assert report.startswith(f"report: {store.local('tiny-2')}/report.html on ")
    moved = receiver.body("SRPO rolled back: tiny, tiny-1")[0]
    assert moved == "tiny/production: tiny-2 → tiny-1, by alice: blurred"


def test_a_promotion_that_fails_sends_nothing(srpo, store, receiver):
    assert srpo("promote", "tiny-9")[0] == 1
    assert srpo("verify", "tiny-9")[0] == 1
    assert srpo("verify", "--all")[0] == 0
    assert receiver.messages == []


def test_verify_and_gc_send_that_the_store_is_damaged_and_keep_their_exit_codes(srpo, store, receiver):
    (store.local("tiny-2") / "README.md").write_text("altered")
    assert srpo("verify", "--all")[0] == 1
    title = f"SRPO store damaged: {store.uri}"
    assert receiver.titles(1) == [title]
    assert "release tiny-2 in" in receiver.body(title)[0]
    assert "is damaged: README.md" in receiver.body(title)[0]
    assert srpo("verify", "tiny-2")[0] == 1
    assert receiver.titles(2) == [title] * 2
    receiver.messages.clear()
    manifest = Path(store.uri) / version_key("tiny-3") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    assert srpo("gc", "--keep", "9")[0] == 0
    assert receiver.titles(1) == [title]
    assert "tiny-3" in receiver.body(title)[0]


def test_a_command_succeeds_although_its_channel_does_not_take_the_message(
    srpo, store, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", f"json://127.0.0.1:1/plantedSECRET0abc {receiver.url}")
    code, printed, _ = srpo("promote", "tiny-1")
    assert (code, printed) == (0, "tiny/production  nothing → tiny-1\n")
    assert receiver.titles(1) == ["SRPO promoted: tiny, tiny-1"]


def test_the_test_message_goes_to_each_channel_and_those_that_fail_are_named_without_their_secret(
    srpo, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    assert srpo("notify", "--test") == (0, "✓ channel 1 (json) took the test message\n", "")
    assert receiver.titles(1) == ["SRPO test: srpo notify"]
    token = "plantedSECRET0abc"
    monkeypatch.setenv("SRPO_NOTIFY", f"{receiver.url} {receiver.url}/fail/{token} slak://{token}/x")
    code, printed, errors = srpo("notify", "--test")
    assert code == 1
    assert [line[:22] for line in printed.splitlines()] == [
        "✓ channel 1 (json) took"[:22],
        "✗ channel 2 (json) failed"[:22],
        "✗ channel 3 (slak) is no"[:22],
    ]
    assert "error=500" in printed
    assert token not in printed + errors


def test_without_test_the_channels_are_listed_and_nothing_is_sent(srpo, receiver, monkeypatch):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    code, printed, _ = srpo("notify")
    assert (code, printed) == (0, "✓ channel 1 (json) is known to apprise; try it with --test\n")
    monkeypatch.setenv("SRPO_NOTIFY", "hello")
    assert srpo("notify")[0] == 1
    monkeypatch.delenv("SRPO_NOTIFY")
    code, _, errors = srpo("notify", "--test")
    assert code == 2
    assert "SRPO_NOTIFY is not set" in errors
    assert receiver.messages == []


@pytest.mark.parametrize(
    ("given", "good", "text"),
    [
        ("", True, "SRPO_NOTIFY is not set: nobody is notified"),
        ("json://127.0.0.1:1/x", True, "channel 1 (json); 'srpo notify --test' sends a message to each"),
        (
            "json://127.0.0.1:1 slak://plantedSECRET0abc",
            False,
            "SRPO_NOTIFY: channel 2 (slak) is no URL that",
        ),
    ],
)
def test_the_doctor_has_a_line_about_the_channels(monkeypatch, given, good, text):
    monkeypatch.setenv("SRPO_NOTIFY", given)
    found, line = CHECKS["notify"](load_settings(ROOT / "profiles/tiny.yaml"))
    assert found == good
    assert line.startswith(text)
    assert "planted" not in line


def test_late_schedules_need_a_server_that_answers(srpo, receiver, monkeypatch, tmp_path):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    code, _, errors = srpo("notify", "--late")
    assert code == 2
    assert "PREFECT_API_URL is not set" in errors
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    code, _, errors = srpo("notify", "--late")
    assert code == 1
    assert "no Prefect server answers at PREFECT_API_URL=http://127.0.0.1:1/api" in errors
    assert receiver.messages == []
