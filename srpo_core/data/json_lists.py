"""Read a file with a JSON list value by value, so that neither a deep nor a long value ends in a trace."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.data.rules import one_line
from srpo_core.errors import DataError

DEEPEST: Final = 100
_BLANK: Final = re.compile(r"[ \t\n\r]*")
# possessive: a text of any length needs no stack
_TOKEN: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_SCALAR: Final = re.compile(r"[^\s,\]}\[{\"]+")


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is not read. rule: a rule of `ingest.rules`; text: as it is in the file, if its reader has it."""

    rule: str
    detail: str
    text: str = ""


class _DoubledKey(Exception):  # noqa: N818  # ends the parsing of a value; never leaves this module
    """An object has a key twice."""


def read_list(path: Path) -> Iterator[tuple[int, Any, str]]:
    """Yield (index, value, text) of a JSON list, parsed one value at a time; some values are `Unreadable`.

    Raises:
        DataError: the file cannot be read, is not UTF-8 or not a list, with line and column of a syntax error.
    """
    text, decoder = _read_text(path), json.JSONDecoder(object_pairs_hook=_object)
    at = _after_blank(text, 0)
    if text[at : at + 1] != "[":
        raise DataError(f"{path}: must contain a JSON list, but begins with {text[at : at + 20]!r}")
    at = _after_blank(text, at + 1)
    index = 0
    while text[at : at + 1] != "]" or index:
        start = at
        try:
            value, at = _value(decoder, text, at)
        except json.JSONDecodeError as error:
            raise _syntax_error(path, index, error) from None
        yield index, value, text[start:at]
        index += 1
        at = _after_blank(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            raise _syntax_error(path, index - 1, json.JSONDecodeError("Expecting ',' or ']'", text, at))
        at = _after_blank(text, at + 1)
    if rest := text[at + 1 :].strip():
        raise DataError(f"{path}: nothing may follow the JSON list, found {rest[:20]!r}")


def parse(text: str) -> Any:
    """Parse a text that is one JSON value; it may be `Unreadable`.

    Raises:
        JSONDecodeError: it is not JSON.
    """
    start = _after_blank(text, 0)
    value, end = _value(json.JSONDecoder(object_pairs_hook=_object), text, start)
    if text[end:].strip():
        raise json.JSONDecodeError("nothing may follow the value", text, end)
    return value


def _value(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    """Return the value that begins at `start`, and its end.

    Raises:
        JSONDecodeError: the text is not JSON.
    """
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError:
        raise
    except _DoubledKey as error:
        return Unreadable("doubled_key", f"key {error.args[0]!r} is there twice"), _end(text, start)[0]
    except RecursionError:
        end, depth = _end(text, start)
        return _too_deep(depth), end
    except ValueError:  # Python's limit to the digits of an integer
        return Unreadable("bad_number", "an integer has more than 4,000 digits"), _end(text, start)[0]
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST:
        # the depth at which Python gives up depends on the caller; this limit does not
        depth = _end(text, start)[1]
        if depth > DEEPEST:
            return _too_deep(depth), end
    return value, end


def _too_deep(depth: int) -> Unreadable:
    return Unreadable(
        "deep_nesting", f"lists and objects are nested {depth} deep, at most {DEEPEST} are allowed"
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DoubledKey(next(name for name in names if names.count(name) > 1))
    return found


def _end(text: str, start: int) -> tuple[int, int]:
    """Return end and depth of the value that begins at `start`, by its brackets.

    Raises:
        JSONDecodeError: a bracket is not closed.
    """
    if text[start] not in "[{":
        scalar = _SCALAR.match(text, start)
        return (scalar.end() if scalar else start), 0
    depth = deepest = 0
    for token in _TOKEN.finditer(text, start):
        sign = token[0]
        if sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
            if not depth:
                return token.end(), deepest
    raise json.JSONDecodeError("a bracket is not closed", text, start)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: ingest.source must name a directory in HPDv2's layout "
            "(train.json, test.json, benchmark/*.json and the images)"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _after_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def _syntax_error(path: Path, index: int, error: json.JSONDecodeError) -> DataError:
    detail = one_line(f"{error.msg}")
    return DataError(
        f"{path}: record {index}: broken JSON at line {error.lineno}, column {error.colno}: {detail}"
    )
