import io
import logging

import pytest
from rich.console import Console

from flows import display


@pytest.fixture
def shown():
    console = Console(file=io.StringIO(), width=60)
    handler = display.StageDisplay(console)
    logger = logging.Logger("test")
    logger.addHandler(handler)
    return logger, console.file


def test_a_stage_has_a_line_as_it_starts_and_one_as_it_ends_and_its_own_lines_between(shown):
    logger, text = shown
    logger.info("x", extra=display.began("train", "SRPO with Direct-Align"))
    logger.info("step 5 of 30", extra=display.said())
    logger.info("x", extra=display.ended("train", "done in 3.0 s"))
    logger.info("x", extra=display.failed("select"))
    assert text.getvalue().splitlines() == [
        "▸ train         SRPO with Direct-Align",
        "    step 5 of 30",
        "✓ train         done in 3.0 s",
        "✗ select        failed",
    ]


def test_long_lines_and_brackets_arrive_unchanged(shown):
    logger, text = shown
    line = "[bold]/a/path[/bold] " + "long " * 40
    logger.info("%s", line, extra=display.said())
    assert text.getvalue() == f"    {line}\n"


def test_warnings_are_shown_and_what_the_engine_says_about_itself_is_not(shown):
    logger, text = shown
    logger.info("chatter")
    logger.warning("the disk is nearly full")
    record = logger.makeRecord("test", logging.ERROR, "/x/flow_engine.py", 1, "Finished in state", (), None)
    logger.handle(record)
    assert text.getvalue() == "the disk is nearly full\n"
