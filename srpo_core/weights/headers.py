"""Say what is wrong with a file of a model, from its first bytes and its header, without torch.

A file may be something else than its name says (a Git LFS pointer, a page of a web server, a pickle), or be cut.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import Any, Final

from srpo_core.errors import DataError
from srpo_core.weights.gguf_header import MAGIC as GGUF
from srpo_core.weights.gguf_header import read_gguf_header
from srpo_core.weights.safetensors_header import (
    LENGTH_BYTES,
    LONGEST_HEADER,
    Located,
    read_safetensors_header,
)

POINTER: Final = b"version https://git-lfs.github.com/spec/"
ZIP: Final = b"PK\x03\x04"
PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
PICKLES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt"})
# UTF-32 first: its little-endian mark begins as that of UTF-16 does
BOMS: Final = MappingProxyType(
    {
        b"\xff\xfe\x00\x00": "UTF-32",
        b"\x00\x00\xfe\xff": "UTF-32",
        b"\xef\xbb\xbf": "UTF-8",
        b"\xff\xfe": "UTF-16",
        b"\xfe\xff": "UTF-16",
    }
)
# no file of a model begins with a comment, so one alone is markup, too
_MARKUP: Final = re.compile(
    rb"(?:\s|<!--.*?-->)*<(!--|(?:!doctype\s+html|html|head|body|title|meta|script|\?xml|error)\b)",
    re.IGNORECASE | re.DOTALL,
)
_TITLE: Final = re.compile(rb"<(title|code|message)[^>]*>([^<]{1,80})", re.IGNORECASE)
_SNIFFED: Final = 4096


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a file of a model, and what to do, as one line; None if its header is intact.

    The name's ending says what the file should be: safetensors, GGUF, a pickle of PyTorch, JSON or another text of a
    tokenizer. Of other files only the first bytes are looked at.
    """
    try:
        require_intact(path)
    except DataError as error:
        return str(error)
    return None


def require_intact(path: Path) -> None:
    """Check the header of a file of a model; see `fault_of`.

    Raises:
        DataError: the file is missing, empty, cut, of another kind than its name says, or damaged.
    """
    require_content(path)
    _READERS.get(path.suffix.lower(), _read_nothing)(path)


def require_content(path: Path) -> None:
    """Raise `DataError` if a file is missing, unreadable, empty, a Git LFS pointer, or a page of a web server."""
    if not path.is_file():
        raise DataError(f"{path} is missing or no file: check the path")
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): check its owner and its disk") from None
    if not start:
        raise DataError(f"{path}: this file is empty: fetch it again")
    if start.startswith(POINTER):
        raise DataError(f"{path}: this is a Git LFS pointer: run git lfs pull in its repository")
    if markup := _MARKUP.match(start.removeprefix(b"\xef\xbb\xbf")):
        kind = "an XML answer" if markup[1].lower() in (b"?xml", b"error") else "an HTML page"
        title = _TITLE.search(start)
        called = f" ({' '.join(title[2].decode('utf-8', 'replace').split())})" if title else ""
        raise DataError(
            f"{path}: this is {kind}: a web server sent it{called} in place of the file; download the file itself, and "
            "for a gated model with a token (HF_TOKEN)"
        )


def kind_of(path: Path) -> str:
    """Return what a file's content is: safetensors, GGUF, pickle, JSON or unknown, with the article to print."""
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES + 1)
    if start.startswith(GGUF):
        return "a GGUF file"
    if start.startswith(ZIP) or PICKLE.match(start):
        return "a pickle of PyTorch"
    if start[LENGTH_BYTES:] == b"{" and int.from_bytes(start[:LENGTH_BYTES], "little") <= LONGEST_HEADER:
        return "a safetensors file"
    return "a JSON text" if start.lstrip()[:1] in (b"{", b"[") else "an unknown file"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object in UTF-8.

    Raises:
        DataError: the file is no such object; the message says what it is instead.
    """
    value = _read_json(path)
    if not isinstance(value, dict):
        raise DataError(f"{path} is damaged (no JSON object): fetch it again")
    return value


def _read_json(path: Path) -> Any:
    require_content(path)
    data = path.read_bytes()
    for mark, name in BOMS.items():
        if data.startswith(mark):
            file = quote(str(path))
            command = (
                f"sed -i '1s/^\\xEF\\xBB\\xBF//' {file}"
                if name == "UTF-8"
                else f"iconv -f {name} -t UTF-8 {file} > copy && mv copy {file}"
            )
            raise DataError(
                f"{path}: this begins with a byte order mark ({name}), with which JSON cannot be read: save it as UTF-8 "
                f"without BOM, for example with {command}"
            )
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())[:120]
        raise DataError(f"{path} is damaged (no JSON in UTF-8: {cause}): fetch it again") from None


def _require_kind(path: Path, expected: str) -> None:
    """Raise `DataError` if a file's content is known to be of another kind than its name says."""
    kind = kind_of(path)
    if kind not in (expected, "an unknown file"):
        raise DataError(f"{path}: this is {kind} and not {expected}: give it the ending of its kind")


def read_safetensors(path: Path) -> Mapping[str, Located]:
    """Check the header of a safetensors file and return its tensors. Raises `DataError` as `require_intact` does."""
    require_content(path)
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> Mapping[str, Located]:
    _require_kind(path, "a safetensors file")
    return read_safetensors_header(path)[0]


def _read_gguf(path: Path) -> None:
    _require_kind(path, "a GGUF file")
    read_gguf_header(path)


def _read_pickle(path: Path) -> None:
    """Check the directory of a zip that torch.save wrote, or the first bytes of an older pickle."""
    _require_kind(path, "a pickle of PyTorch")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    if PICKLE.match(start):
        return
    if start != ZIP:
        raise DataError(f"{path} is no file of PyTorch (neither a zip nor a pickle): fetch it again")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise DataError(
            f"{path}: cut at {size} bytes, it lacks the directory at the end of its zip: fetch it again"
        ) from None
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise DataError(f"{path} is a zip, but no file of PyTorch (it has no data.pkl): fetch it again")


def _read_nothing(_path: Path) -> None:
    pass


_READERS: Final[Mapping[str, Callable[[Path], object]]] = MappingProxyType(
    {
        ".safetensors": _read_safetensors,
        ".gguf": _read_gguf,
        ".json": _read_json,
        **dict.fromkeys(PICKLES, _read_pickle),
    }
)
