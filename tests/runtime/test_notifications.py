"""The text of each message."""

import socket
from pathlib import Path

import pytest

from srpo_core.runtime.notifications import KINDS, Kind, awaiting_approval, compose


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_title_with_its_name_and_a_level(kind):
    message = compose(kind, ["tiny", None, "run brave-otter"], "the cause.", {"run": "http://host/runs/1"})
    assert message.title == f"SRPO {kind.value}: tiny, run brave-otter"
    assert message.body == "the cause.\nrun: http://host/runs/1"
    assert message.level == KINDS[kind]


def test_a_path_is_named_with_its_machine_and_a_missing_link_is_left_out():
    links = {"run": None, "grid": Path("/x/grid.png"), "report": "s3://bucket/report.html"}
    assert compose(Kind.REFUSED, ["tiny"], "c", links).body.splitlines() == [
        "c",
        f"grid: /x/grid.png on {socket.gethostname()}",
        "report: s3://bucket/report.html",
    ]


def test_a_cause_becomes_one_line_without_control_characters_and_credentials_and_is_cut():
    message = compose(Kind.FAILED, ["ti\nny"], "a\x1b[31m\nb https://me:pw12345@host/ " + "x" * 5000)
    assert message.title == "SRPO failed: ti ny"
    assert message.body.startswith("a [31m b https://***@host/ xxx")
    assert len(message.body) == 1000


def test_the_message_that_a_release_awaits_approval_names_both_versions_and_the_form():
    message = awaiting_approval(
        "my-model-12ab",
        "my-model-00ff",
        verdict="passed: every rule holds.",
        form="http://ui/run",
        until="Monday 10:00",
        links={"grid": "https://store/grid.png", "report": "https://store/report.html"},
    )
    assert message.title == "SRPO awaiting approval: my-model, my-model-12ab"
    assert message.body.splitlines() == [
        "my-model-12ab would be promoted, instead of my-model-00ff; passed: every rule holds.; decide until Monday 10:00",
        "form: http://ui/run",
        "grid: https://store/grid.png",
        "report: https://store/report.html",
    ]
    first = awaiting_approval("tiny-1", None, verdict="passed", form="f", until="u")
    assert "and nothing is in production" in first.body
