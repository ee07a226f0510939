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


def test_the_output_of_a_stage_is_between_a_start_and_an_end_line(shown):
    logger, text = shown
    logger.info("x", extra=display.started("train", "SRPO with Direct-Align"))
    logger.info("step 5 of 30", extra=display.output())
    logger.info("x", extra=display.finished("train", "done in 3.0 s"))
    logger.info("x", extra=display.failed("select"))
    assert text.getvalue().splitlines() == [
        "▸ train         SRPO with Direct-Align",
        "    step 5 of 30",
        "✓ train         done in 3.0 s",
        "✗ select        failed",
    ]


def test_long_lines_and_brackets_are_printed_unchanged(shown):
    logger, text = shown
    line = "[bold]/a/path[/bold] " + "long " * 40
    logger.info("%s", line, extra=display.output())
    assert text.getvalue() == f"    {line}\n"


def test_warnings_are_printed_but_messages_of_the_prefect_engine_are_not(shown):
    logger, text = shown
    logger.info("a detail")
    logger.warning("the disk is nearly full")
    record = logger.makeRecord("test", logging.ERROR, "/x/flow_engine.py", 1, "Finished in state", (), None)
    logger.handle(record)
    assert text.getvalue() == "the disk is nearly full\n"
