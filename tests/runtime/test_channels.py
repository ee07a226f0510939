"""Messages reach the channels of SRPO_NOTIFY; a channel that fails delays nothing and is named without its secret."""

import logging
import queue
import subprocess
import sys
import threading

import pytest

from srpo_core.runtime.channels import Channel, Message, channels, check, deliver, send, unusable_channels

MESSAGE = Message("SRPO test: title", "first line\nsecond <b>line</b> & more", "warning")
TOKEN = "Xq7plantedSECRET0abc"


def test_blanks_separate_the_channels_and_none_is_no_channel():
    found = channels({"SRPO_NOTIFY": "  slack://a/b/c \n json://host/x "})
    assert [(one.number, one.url) for one in found] == [(1, "slack://a/b/c"), (2, "json://host/x")]
    assert channels({"SRPO_NOTIFY": "  "}) == channels({}) == []


def test_the_name_of_a_channel_has_its_number_and_service_and_nothing_else_of_its_url():
    for url, name in (
        (f"SLACK://{TOKEN}/b/c", "channel 2 (slack)"),
        (TOKEN, "channel 2"),
        (f"{TOKEN}://a", "channel 2"),
    ):
        channel = Channel(2, url)
        assert channel.name == name
        assert TOKEN not in repr(channel)


def test_every_channel_gets_title_body_and_type(receiver):
    given = channels({"SRPO_NOTIFY": f"{receiver.url}/a {receiver.url}/b"})
    assert deliver(MESSAGE, given) == dict.fromkeys(given)
    assert [(one["title"], one["message"], one["type"]) for one in receiver.messages] == [
        (MESSAGE.title, MESSAGE.body, "warning")
    ] * 2


def test_a_channel_that_fails_does_not_keep_another_from_its_message_and_gives_the_reason(receiver):
    given = channels(
        {
            "SRPO_NOTIFY": f"{receiver.url}/fail/{TOKEN} slak://{TOKEN}/x json://127.0.0.1:1/{TOKEN} {receiver.url}/a"
        }
    )
    faults = list(deliver(MESSAGE, given).values())
    assert faults[0] == "failed (Failed to send JSON POST notification: Internal server error., error=500)"
    assert faults[1].startswith("is no URL that apprise can use: ")
    assert faults[2] == "failed (A Connection error occurred sending JSON notification to ***)"
    assert faults[3] is None
    assert receiver.titles(1) == [MESSAGE.title]
    assert not any(TOKEN in fault for fault in faults[:3])


def test_a_channel_that_does_not_answer_is_given_up(receiver):
    given = channels({"SRPO_NOTIFY": f"{receiver.url}/hang"})
    assert list(deliver(MESSAGE, given, seconds=0.3).values()) == ["did not answer within 0.3 s"]


def test_an_exception_of_a_service_is_a_failed_channel(receiver, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError(f"no socket for {TOKEN}")

    monkeypatch.setattr("requests.request", fail)
    given = channels({"SRPO_NOTIFY": f"{receiver.url}/{TOKEN}"})
    assert list(deliver(MESSAGE, given).values()) == ["failed (RuntimeError: no socket for ***)"]


def test_sending_returns_before_a_channel_answers_and_reports_it_later(receiver, monkeypatch):
    monkeypatch.setenv("SRPO_NOTIFY", f"{receiver.url}/hang/{TOKEN}")
    sent, lines = threading.Event(), queue.Queue()
    send(MESSAGE, lambda line: sent.wait(60) and lines.put(line), seconds=0.3)
    sent.set()
    assert lines.get(timeout=60) == (
        "SRPO_NOTIFY: channel 1 (json) did not answer within 0.3 s; it did not get 'SRPO test: title'"
    )


def printed_by(code, given):
    """Run code in a process of its own with these channels; return the lines that it prints."""
    environment = {"PYTHONPATH": ":".join(sys.path), "SRPO_NOTIFY": given}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_without_channels_apprise_is_not_loaded():
    code = (
        "import sys; from srpo_core.runtime.channels import *; send(Message('t', 'b', 'info'), print); "
        "print('apprise' in sys.modules)"
    )
    assert printed_by(code, " ") == ["False"]


AT_THE_END = (
    "from srpo_core.runtime.channels import *; "
    "send(Message('at the end', 'b', 'info'), lambda line: print(line, flush=True){}); print('end', flush=True)"
)


def test_a_process_waits_at_its_end_until_its_message_is_sent(receiver):
    assert printed_by(AT_THE_END.format(""), receiver.url) == ["end"]
    assert [message["title"] for message in receiver.messages] == ["at the end"]


def test_a_process_ends_although_a_channel_hangs_and_reports_it(receiver):
    assert printed_by(AT_THE_END.format(", seconds=0.3"), f"{receiver.url}/hang/{TOKEN}") == [
        "end",
        "SRPO_NOTIFY: channel 1 (json) did not answer within 0.3 s; it did not get 'at the end'",
    ]


def test_no_log_has_the_secret_of_a_channel_even_at_the_lowest_level(receiver, caplog):
    given = channels(
        {
            "SRPO_NOTIFY": f"{receiver.url}/{TOKEN}?token={TOKEN} {receiver.url}/fail/{TOKEN} slak://{TOKEN}/x"
            f" slack://{TOKEN} json://127.0.0.1:1/{TOKEN}"
        }
    )
    for name in ("apprise", "urllib3", "urllib3.connectionpool", "requests"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    with caplog.at_level(logging.NOTSET):
        check(given)
        deliver(MESSAGE, given)
        unusable_channels(given)
    assert TOKEN not in caplog.text
    assert receiver.titles(1) == [MESSAGE.title]


@pytest.mark.parametrize("url", ["slak://a/b/c", "hello", "https://example.org/x", "slack://one", "json://"])
def test_a_url_that_apprise_does_not_know_is_unusable(url):
    (line,) = unusable_channels(channels({"SRPO_NOTIFY": url}))
    assert line.startswith("SRPO_NOTIFY: channel 1")
    assert " is no URL that apprise can use: https://appriseit.com/services/ has the form" in line
    assert "example.org" not in line


def test_a_url_that_apprise_knows_is_usable_without_being_asked():
    given = channels({"SRPO_NOTIFY": "json://127.0.0.1:1 discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js"})
    assert unusable_channels(given) == []
