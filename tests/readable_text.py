"""Whether a text is one that a person can read and a file can hold, by Unicode's tables alone."""

import re
import unicodedata

_BLANK = {"Cc", "Cf", "Zs", "Zl", "Zp"}
# Unicode's Default_Ignorable_Code_Point outside of these categories, and the blank of Braille
_IGNORED = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


def is_text(value):
    """Whether a value is a text that people see and files can hold."""
    return (
        isinstance(value, str)
        and not any(unicodedata.category(sign) == "Cs" for sign in value)
        and not any(unicodedata.category(sign) == "Cc" and sign not in "\t\n\r" for sign in value)
        and any(unicodedata.category(sign) not in _BLANK and not _IGNORED.match(sign) for sign in value)
    )
