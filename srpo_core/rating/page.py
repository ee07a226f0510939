"""The page on which people rate: one HTML document without any request to another place.

The same page is served, and exported as a file. It has a description of the task as JSON, in which no model is named.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

from srpo_core.rating.answers import LONGEST
from srpo_core.rating.records import PAIRED

_QUESTIONS: Final = {
    "text_alignment": "Does it show what the text says?",
    "realism": "How realistic and well made is it?",
    "aesthetics": "How beautiful is it?",
    "overall": "Overall",
}
_INSTRUCTIONS: Final = {
    "paired": "You will see a text and two images that were generated from it. Choose the one that you like better for this "
    "text: keys ← and →, t for a tie, b if both are bad, u to undo. Click on an image to see it larger.",
    "levels": "You will see a text and an image that was generated from it. Grade the image in four respects: keys 1 "
    "(excellent) to 4 (fail), u to undo. Click on the image to see it larger.",
}
# name, text, hint, keys
_ANSWERS: Final = {
    "paired": (
        ("left", "Left", "←", ("arrowleft",)),
        ("right", "Right", "→", ("arrowright",)),
        ("tie", "Tie", "t", ("t",)),
        ("both_bad", "Both bad", "b", ("b",)),
    ),
    "levels": (
        ("excellent", "Excellent", "1", ("1",)),
        ("good", "Good", "2", ("2",)),
        ("pass", "Pass", "3", ("3",)),
        ("fail", "Fail", "4", ("4",)),
    ),
}


def shown_answers(protocol: str) -> tuple[str, ...]:
    """Return the answers that the page offers; of a pair they name a side, not a model."""
    return tuple(name for name, *_ in _ANSWERS[protocol])


@cache
def page_version() -> str:
    """Return a digest of the page without a task, 12 hex digits; each answer notes it."""
    content = _part("page.html") + _part("page.css") + _part("page.js")
    texts = json.dumps([_QUESTIONS, _INSTRUCTIONS, _ANSWERS], sort_keys=True)
    return hashlib.sha256((content + texts).encode()).hexdigest()[:12]


def render(protocol: str, dimensions: Sequence[str], content: Mapping[str, Any]) -> str:
    """Return the page. content: of the task, further keys of the JSON that the page reads."""
    paired = protocol == PAIRED
    described = {
        "protocol": protocol,
        "page": page_version(),
        "longest": LONGEST,
        "instructions": _INSTRUCTIONS[protocol],
        "dimensions": [
            {"name": name, "question": "Which image is better?" if paired else _QUESTIONS[name]}
            for name in dimensions
        ],
        "answers": [
            {"name": name, "text": text, "hint": hint, "keys": keys}
            for name, text, hint, keys in _ANSWERS[protocol]
        ],
        **content,
    }
    parts = {
        "policy": policy(),
        "style": _part("page.css"),
        "script": _part("page.js"),
        "task": json.dumps(described).replace("<", "\\u003c"),
    }
    before, *rest = _part("page.html").split("@")
    pieces = [before]
    for place, text in enumerate(rest):  # text and the name of a part alternate
        pieces.append(parts[text] if place % 2 == 0 else text)
    return "".join(pieces)


@cache
def policy() -> str:
    """Return the page's content security policy: its own script and style, images and answers of its own server."""
    script, style = (_sha256(_part(name)) for name in ("page.js", "page.css"))
    return (
        f"default-src 'none'; script-src '{script}'; style-src '{style}'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'"
    )


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _part(name: str) -> str:
    return files("srpo_core.rating").joinpath(name).read_text(encoding="utf-8")
