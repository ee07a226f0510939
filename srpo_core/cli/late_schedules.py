"""Notify of scheduled runs that no worker has started in time, once or every minute."""

import logging
import time
from typing import Final

import typer

from srpo_core.credentials import NOTIFY
from srpo_core.runtime.channels import Message, channels, deliver
from srpo_core.runtime.late_runs import LateWatch, notify_late

SECONDS_BETWEEN: Final = 60.0

log = logging.getLogger(__name__)


def notify_late_schedules(*, repeat: bool) -> None:
    """Ask the server of PREFECT_API_URL for late runs and send a message for those that are new; `repeat`: until ended.

    Raises:
        ConfigError: PREFECT_API_URL is not set or cannot be used.
        SrpoError: without `repeat`, the server does not answer.
    """
    if not repeat:
        count = notify_late(_deliver)
        typer.echo("no scheduled run is newly late" if count == 0 else f"messages: {count}")
        return
    watch = LateWatch(_deliver)
    while True:
        fault = watch.check()
        if fault and watch.unanswered == 1:  # the first check of an outage
            log.warning("%s", fault)
        time.sleep(SECONDS_BETWEEN)


def _deliver(message: Message) -> bool:
    """Send a message and print its title; return whether a channel took it. Each that did not is one line."""
    typer.echo(message.title)
    faults = deliver(message, channels())
    for channel, fault in faults.items():
        if fault is not None:
            log.warning("%s: %s %s", NOTIFY, channel.name, fault)
    return None in faults.values()
