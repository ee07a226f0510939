"""Mask credentials in text that is printed, logged or published."""

import os
import re
from typing import Final
from urllib.parse import unquote

MASK: Final = "***"
NOTIFY: Final = "SRPO_NOTIFY"  # URLs of apprise, in which any part may be a token

_SHORTEST: Final = 6  # a shorter value is a placeholder, and masking it would hide ordinary words
_NAME_OF_ONE: Final = (
    r"[\w.-]*(?:password|passwd|passphrase|secret|token|auth[_-]string|api[_-]?key|access[_-]?key(?:[_-]id)?"
    r"|account[_-]?key|private[_-]?key|connection[_-]string)"
)
_SECRET_VARIABLE: Final = re.compile(_NAME_OF_ONE, re.IGNORECASE)
# of a URL; a secret may contain slashes, and `pathlib` makes one slash of two
_USER_OF_URL: Final = re.compile(
    r"(?i)\b([a-z][a-z0-9+.-]*:/{1,2})(?!git@)(?:[^\s@'\"<>]*:[^\s@'\"<>]*|[^\s/@'\"<>]+)@"
)
_IN_QUERY: Final = re.compile(
    r"(?i)([?&](?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|AWSAccessKeyId|sig|signature|access_token|token)=)"
    r"[^&\s'\"<>]+"
)
_KNOWN_FORMS: Final = re.compile(
    r"\b(?:A(?:KIA|SIA)[A-Z0-9]{16}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# a call or an index after the equals sign is code, not a value
_ASSIGNMENT: Final = re.compile(
    rf"(?i)((?<![\w.-]){_NAME_OF_ONE}[\"']?\s*[=:]\s*[\"']?)(?!\*\*\*)([^\s\"'`,;(){{}}\[\]$]{{{_SHORTEST},}}+)(?![(\[])"
)
_DELIMITERS: Final = re.compile(r"[:/@?&=,;#+\s]+")
_SHORTEST_PART: Final = 4
_SHORTEST_TOKEN: Final = 8
_KINDS_OF_LETTERS: Final = (str.isdigit, str.islower, str.isupper)


def mask_credentials(text: str) -> str:
    """Replace credentials in a message or a URI by `***`.

    These are masked: user and password of a URL, signatures in its query, keys and tokens of a known form, and every
    value of this process's environment variables whose name says that it is a secret, such as AWS_SECRET_ACCESS_KEY.
    Of `SRPO_NOTIFY` the whole URLs are masked, and those of their parts that look like a token or are a password.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, MASK)
    text = _USER_OF_URL.sub(rf"\1{MASK}@", text)
    text = _IN_QUERY.sub(rf"\1{MASK}", text)
    return _KNOWN_FORMS.sub(MASK, text)


def mask_file_content(text: str) -> str:
    """Mask, besides what `mask_credentials` finds, values that are assigned to a name such as `password`.

    For the content of files and their diffs. Prose has such words too, so messages are not masked by them.
    """
    return _ASSIGNMENT.sub(rf"\1{MASK}", mask_credentials(text))


def mask_parts(text: str, url: str) -> str:
    """Replace every part of a URL but its scheme by `***`, also where it is decoded; for URLs of notifications."""
    for part in sorted(_parts(url), key=len, reverse=True):
        text = text.replace(part, MASK)
    return text


def _parts(url: str) -> set[str]:
    """Return the words between the delimiters of a URL without its scheme, and the whole, as written and decoded."""
    whole = url.partition("://")[2] or url
    words = {word for one in (whole, unquote(whole)) for word in (one, *_DELIMITERS.split(one))}
    return {word for word in words | {unquote(word) for word in words} if len(word) >= _SHORTEST_PART}


def _secrets_of_channels() -> set[str]:
    """Return what identifies the channels of `SRPO_NOTIFY`, without words that other messages may have, such as hosts."""
    found: set[str] = set()
    for url in os.environ.get(NOTIFY, "").split():
        whole = url.partition("://")[2]
        passwords = [user.partition(":")[2] for user, at, _ in [whole.rpartition("@")] if at]
        found |= {url, *(unquote(one) for one in passwords), *passwords}
        found |= {part for part in _parts(url) if "/" not in part and _is_token(part)}
    return {one for one in found if len(one) >= _SHORTEST}


def _is_token(word: str) -> bool:
    kinds = sum(any(kind(letter) for letter in word) for kind in _KINDS_OF_LETTERS)
    return len(word) >= _SHORTEST_TOKEN and kinds > 1 and "." not in word


def _secrets_of_environment() -> list[str]:
    """Return the secret values of this process's environment, the longest first: one may contain another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and _SECRET_VARIABLE.fullmatch(name)
    } | _secrets_of_channels()
    return sorted(found, key=len, reverse=True)
