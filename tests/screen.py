"""A terminal for tests: what a program leaves on the screen, and a pseudo terminal to run it on."""

import errno
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_CONTROL = re.compile(r"\x1b\[(\?)?([0-9;]*)([A-Za-z])")


class Screen:
    """The lines of a terminal of some width and any height; knows the controls that progress displays use."""

    def __init__(self, width: int = 80) -> None:
        self.width = width
        self.rows = [""]
        self.row = self.column = 0
        self.cursor_is_visible = True
        self._rest = ""

    @property
    def lines(self) -> list[str]:
        """The lines, without blanks at their ends and empty lines at the end."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip("\n").split("\n")

    def feed(self, text: str) -> None:
        """Take what a program writes."""
        text, self._rest = self._rest + text, ""
        place = 0
        while place < len(text):
            if text[place] == "\x1b":
                found = _CONTROL.match(text, place)
                if found is None:
                    self._rest = text[place:]  # the rest of the sequence is still to come
                    assert len(self._rest) < 20, f"an unknown control sequence {self._rest!r}"
                    return
                self._control(*found.groups())
                place = found.end()
                continue
            self._print(text[place])
            place += 1

    def _control(self, private: str | None, number: str, letter: str) -> None:
        if private and number == "25":
            self.cursor_is_visible = letter == "h"
        elif letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            assert number == "2"
            self.rows[self.row] = ""
        else:
            assert letter == "m", f"an unknown control sequence {number}{letter}"

    def _print(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
            return
        if letter == "\n" or self.column == self.width:
            self.row += 1
            self.column = 0
            self.rows.extend([""] * (self.row + 1 - len(self.rows)))
        if letter != "\n":
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + letter + row[self.column + 1 :]
            self.column += 1


def open_terminal(width: int = 80, height: int = 40) -> tuple[int, int]:
    """Open a pseudo terminal; return its two ends: where a test reads, and where a program writes."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    return reading, writing


def read_terminal(reading: int) -> Iterator[str]:
    """Yield what is written to a pseudo terminal until its last writer has ended."""
    rest = b""
    while True:
        try:
            data = os.read(reading, 1 << 16)
        except OSError as error:
            assert error.errno == errno.EIO  # Linux reports the end in this way
            return
        if not data:
            return
        text, rest = _whole_letters(rest + data)
        yield text


def run_on_terminal(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], width: int = 80
) -> tuple[int, Screen, list[str]]:
    """Run a command on a pseudo terminal; return its exit code, the screen it leaves, and all that it wrote."""
    reading, writing = open_terminal(width)
    screen, chunks = Screen(width), []
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdin=writing, stdout=writing, stderr=writing
    ) as process:
        os.close(writing)
        for text in read_terminal(reading):
            screen.feed(text)
            chunks.append(text)
    os.close(reading)
    return process.returncode, screen, chunks


def _whole_letters(data: bytes) -> tuple[str, bytes]:
    """Decode UTF-8 up to a letter of which the end is missing; return it, and what is left."""
    for end in range(len(data), max(-1, len(data) - 4), -1):
        try:
            return data[:end].decode(), data[end:]
        except UnicodeDecodeError:
            continue
    raise AssertionError(f"no UTF-8: {data!r}")
