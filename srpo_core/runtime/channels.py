"""Send messages to the channels of `SRPO_NOTIFY`, URLs of apprise separated by blanks.

Such a URL may have a token in any part, the host included. So a channel is named by its number and its service, a reason
is printed without the parts of its URL, and what apprise and its HTTP client log does not reach the logs of this
process.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from srpo_core.credentials import NOTIFY, mask_parts

if TYPE_CHECKING:
    from apprise import NotifyBase

SECONDS: Final = 10.0  # within which a channel must have taken a message
THREAD: Final = "srpo-notify"
UNKNOWN: Final = (
    "is no URL that apprise can use: https://appriseit.com/services/ has the form of each service"
)
_CLIENTS: Final = ("urllib3.connectionpool", "urllib3.util.retry")  # their debug lines have paths of URLs
_LONGEST_REASON: Final = 200
_LONGEST_SERVICE: Final = 12

Level = Literal["info", "success", "warning", "failure"]


@dataclass(frozen=True)
class Message:
    """What is sent. level: apprise's type of a notification, which channels show as a colour or an icon."""

    title: str
    body: str
    level: Level


@dataclass(frozen=True)
class Channel:
    """One URL of `SRPO_NOTIFY`, and its place there, from 1."""

    number: int
    url: str = field(repr=False)

    @property
    def name(self) -> str:
        """Name the channel without a secret: its number and, if the URL begins with a word, its service."""
        service, separator, _ = self.url.partition("://")
        is_word = service.isascii() and service.isalpha() and len(service) <= _LONGEST_SERVICE
        return f"channel {self.number}" + (f" ({service.lower()})" if separator and is_word else "")


def channels(environment: Mapping[str, str] | None = None) -> list[Channel]:
    """Return the channels of `SRPO_NOTIFY`; none if it is unset or blank."""
    given = (os.environ if environment is None else environment).get(NOTIFY, "")
    return [Channel(number, url) for number, url in enumerate(given.split(), 1)]


def check(given: Sequence[Channel]) -> dict[Channel, str | None]:
    """Return for each channel why it cannot be used: apprise does not know its URL; or None. Nothing is sent."""
    return {one: None if _is_known(one) else UNKNOWN for one in given}


def unusable_channels(given: Sequence[Channel]) -> list[str]:
    """Return one line for each channel that cannot be used."""
    return [f"{NOTIFY}: {one.name} {fault}" for one, fault in check(given).items() if fault is not None]


def deliver(
    message: Message, given: Sequence[Channel], seconds: float = SECONDS
) -> dict[Channel, str | None]:
    """Send a message to all channels at the same time; return for each why it did not take it, or None.

    It returns within `seconds`: nothing bounds how long a service takes to be found and to answer, so each channel has a
    thread, and one that has not answered by then is given up.
    """
    sending: dict[Channel, Future[str | None]] = {one: Future() for one in given}
    for channel, future in sending.items():
        threading.Thread(target=_fulfil, args=(future, channel, message), name=THREAD, daemon=True).start()
    wait(sending.values(), timeout=seconds)
    return {
        channel: future.result() if future.done() else f"did not answer within {seconds:g} s"
        for channel, future in sending.items()
    }


def send(message: Message, report: Callable[[str], None], seconds: float = SECONDS) -> None:
    """Send a message to the channels of `SRPO_NOTIFY` in the background; `report` gets one line for each that fails.

    It returns at once, and raises nothing. The end of this process waits for the channels, see `in_background`.
    """
    given = channels()

    def deliver_and_report() -> None:
        for channel, fault in deliver(message, given, seconds).items():
            if fault is not None:
                report(f"{NOTIFY}: {channel.name} {fault}; it did not get {message.title!r}")

    if given:
        in_background(deliver_and_report, seconds)


def in_background(act: Callable[[], None], seconds: float = SECONDS) -> None:
    """Run a function in a thread of its own; the end of this process waits for it, but no longer than `seconds`."""
    # Prefect keeps its settings in context variables
    thread = threading.Thread(target=copy_context().run, args=(act,), name=THREAD, daemon=True)
    thread.start()
    atexit.register(thread.join, seconds + 1)


def _fulfil(future: "Future[str | None]", channel: Channel, message: Message) -> None:
    future.set_result(_fault(channel, message))


def _fault(channel: Channel, message: Message) -> str | None:
    """Send a message; return why it was not taken, or None."""
    with _apprise_reasons() as reasons:
        try:
            service = _service(channel)
            if service is None:
                return UNKNOWN
            taken = _notify(service, message)
        except Exception as error:  # noqa: BLE001  # whatever one of a hundred services raises is a failed channel
            taken = False
            reasons.append(f"{type(error).__name__}: {error}")
    if taken:
        return None
    reason = (
        " ".join(mask_parts(reasons[-1], channel.url).split()) if reasons else "it did not take the message"
    )
    return f"failed ({reason[:_LONGEST_REASON].rstrip('.')})"


def _notify(service: "NotifyBase", message: Message) -> bool:
    from apprise import Apprise, NotifyFormat

    one = Apprise()
    one.add(service)
    taken = one.notify(
        body=message.body, title=message.title, notify_type=message.level, body_format=NotifyFormat.TEXT
    )
    return bool(taken)


def _is_known(channel: Channel) -> bool:
    with _apprise_reasons():
        return _service(channel) is not None


def _service(channel: Channel) -> "NotifyBase | None":
    """Return apprise's service of a URL, or None if it knows none."""
    from apprise import Apprise, AppriseAsset

    asset = AppriseAsset(app_id="SRPO", app_desc="SRPO pipeline", app_url="", async_mode=False)
    service: Any = Apprise.instantiate(channel.url, asset=asset)
    return service if service else None


@contextmanager
def _apprise_reasons() -> Iterator[list[str]]:
    """Yield the warnings of apprise in this thread, and keep them and its HTTP client's lines from all other logs."""
    log, lines, thread = logging.getLogger("apprise"), list[str](), threading.get_ident()
    log.setLevel(logging.WARNING)  # its debug lines have URLs and messages
    log.propagate = False
    for name in _CLIENTS:
        logging.getLogger(name).addFilter(_is_from_elsewhere)
    handler = logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.thread == thread)
    handler.emit = lambda record: lines.append(_reason(record))  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def _reason(record: logging.LogRecord) -> str:
    """Return a warning in words; apprise logs an exception of a service beside its own words."""
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage() if error is None else f"{type(error).__name__}: {error}"


def _is_from_elsewhere(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD
