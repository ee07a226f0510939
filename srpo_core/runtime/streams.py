"""Print on every terminal: whatever its encoding is, and also if what reads the output has ended.

Python's default is to raise an error for a letter that the encoding lacks, and for a pipe that nobody reads any more.
"""

import codecs
import io
import locale
import os
import select
import signal
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

CLOSED_PIPE: Final = 128 + signal.SIGPIPE  # as a shell reports a program that SIGPIPE ended
_HANDLER: Final = "srpo.plain"
_PLAIN: Final = MappingProxyType(
    {
        "━": "=", "─": "-", "·": ".", "✓": "+", "✗": "x", "▸": ">", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "→": "->", "≥": ">=", "≤": "<=",
        "±": "+-", "“": '"', "”": '"', "„": '"', "’": "'", "ß": "ss",
    }
)  # fmt: skip
_UTF8_MODE: Final = "PYTHONUTF8"
_OUTPUT: Final = "PYTHONIOENCODING"


def prepare_streams() -> None:
    """Open closed standard streams on /dev/null, and let output replace what its encoding does not have."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would take its place, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error(_HANDLER, _plain)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed when Python started
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # open until the end
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def restart_in_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if the locale has another encoding; else return.

    Libraries open files in the encoding of the locale. What is printed keeps the encoding of the terminal, unless that
    is ASCII, which Python itself takes for UTF-8.
    """
    if sys.flags.utf8_mode or os.environ.get(_UTF8_MODE) == "1" or _is_utf8(locale.getencoding()):
        return
    environment = {**os.environ, _UTF8_MODE: "1"}
    if sys.stdout is not None and codecs.lookup(sys.stdout.encoding).name != "ascii":
        environment.setdefault(_OUTPUT, sys.stdout.encoding)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606  # this command


def has_lost_reader() -> bool:
    """Whether standard output or standard error is a pipe whose reader has ended, as in `srpo ... | head -1`."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            return True
    return False


def end_unread() -> NoReturn:
    """End without a message, because nobody reads the output, with the code of a program that SIGPIPE ended."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # what is still in its buffer is lost
            os.dup2(null, stream.fileno())
    sys.exit(CLOSED_PIPE)


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace letters that an encoding lacks: by similar ones of ASCII, or else by a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_similar, error.object[error.start : error.end])), error.end


def _similar(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _PLAIN.get(letter) or plain or "?"
