"""What is notified of a run and of a release, and the text of each message.

`KINDS` is the one table of events. The flows and the commands only name the kind, and say what the event is about.
"""

import socket
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.credentials import mask_credentials
from srpo_core.runtime.channels import Level, Message

LONGEST_CAUSE: Final = 1000
_URL: Final = "://"


class Kind(StrEnum):
    """The kinds of messages; the value begins the title."""

    REFUSED = "refused"
    FAILED = "failed"
    ALARM = "reward hacking alarm"
    LATE = "late schedule"
    STALL = "stall"
    PUBLISHED = "published"
    AWAITING_APPROVAL = "awaiting approval"
    UNDECIDED = "approval expired"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    DAMAGED = "store damaged"
    DRIFT = "drift"
    TEST = "test"


KINDS: Final = MappingProxyType[Kind, Level](
    {
        Kind.REFUSED: "warning",
        Kind.FAILED: "failure",
        Kind.ALARM: "warning",
        Kind.LATE: "failure",
        Kind.STALL: "warning",
        Kind.PUBLISHED: "success",
        Kind.AWAITING_APPROVAL: "info",
        Kind.UNDECIDED: "warning",
        Kind.PROMOTED: "success",
        Kind.ROLLED_BACK: "warning",
        Kind.DAMAGED: "failure",
        Kind.DRIFT: "info",
        Kind.TEST: "info",
    }
)


def compose(
    kind: Kind,
    subject: Sequence[str | None],
    cause: str,
    links: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> Message:
    """Return the message of an event.

    subject: what it is about, such as model and version, or model and run; what is None is left out.
    cause: the verdict or the reason; it becomes one line without control characters and credentials.
    links: addresses by name. A path is written with the name of this machine; one that is None is left out.
    """
    title = f"SRPO {kind}: {', '.join(_line(part) for part in subject if part)}"
    lines = [
        _line(cause)[:LONGEST_CAUSE],
        *(f"{name}: {located(link)}" for name, link in links.items() if link),
    ]
    return Message(title, "\n".join(lines), KINDS[kind])


def awaiting_approval(
    candidate: str,
    champion: str | None,
    *,
    verdict: str,
    form: str | None,
    until: str,
    links: Mapping[str, str] = MappingProxyType({}),
) -> Message:
    """Return the message that a release waits for a person, who decides in the form of the run.

    candidate, champion: versions; form: address of the run; until: when the time to decide ends, in words; links: where
    grid and report of the candidate are.
    """
    against = f"instead of {champion}" if champion else "and nothing is in production"
    cause = f"{candidate} would be promoted, {against}; {verdict}; decide until {until}"
    model = candidate.rpartition("-")[0]
    return compose(Kind.AWAITING_APPROVAL, [model, candidate], cause, {"form": form, **links})


def located(link: str | Path) -> str:
    """Return an address, or a path with the name of this machine, as one line."""
    text = _line(str(link))
    return text if _URL in text else f"{text} on {socket.gethostname()}"


def _line(text: str) -> str:
    return " ".join(mask_credentials("".join(one if one.isprintable() else " " for one in text)).split())
