"""Text from outside, such as prompts and reasons, as plain text of a page."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

# C0, C1 and the controls of writing direction, with which a line can show other text than it contains
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_KEPT: Final = frozenset("\n\t\u200d")  # the joiner of emoji
_BACKTICKS: Final = re.compile("`+")
_MARKDOWN: Final = re.compile(r"([\\`*\[\]<>|~])")  # a line that begins with other text needs no more


def visible(text: str) -> str:
    """Replace control characters and characters without a glyph by their escapes, for instance by x1b and a backslash."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one
        if one in _KEPT or unicodedata.category(one) not in _INVISIBLE
        else one.encode("unicode_escape").decode()
        for one in text.encode("utf-8", "backslashreplace").decode()
    )


def markdown_code(lines: Sequence[str]) -> str:
    """Return lines as a block of code in Markdown, with a fence that none of them can close."""
    shown = [visible(line) for line in lines]
    longest = max((len(run) for line in shown for run in _BACKTICKS.findall(line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *shown, fence])


def markdown_text(text: str) -> str:
    """Escape a text for a line of Markdown: it forms no heading, link, table, code or HTML."""
    return _MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))
