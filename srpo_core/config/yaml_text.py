"""Read and write YAML 1.2 with ruamel.yaml, the library and the rules of DVC.

Every YAML file of the project is read here, so `yes`, `0123`, `1:30` and `1e-4` mean the same to this project and to
DVC: a word, 123, a word, and 0.0001. What DVC refuses late, or reads differently in two places, is refused here with
the file and the line.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import ConfigError

_MAX_DEPTH: Final = 100  # of nested lists and mappings; the settings have 5
_WIDTH: Final = 1_000_000  # characters; a shorter line would fold long strings
_STANDARD: Final = "tag:yaml.org,2002:"
_STRING: Final = f"{_STANDARD}str"
_MERGE: Final = f"{_STANDARD}merge"


def read_yaml(path: Path) -> Any:
    """Read a YAML file; an empty one gives None.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it cannot be read, or `parse_yaml` refuses it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not YAML: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document; `where` names its origin in the error. An empty text gives None.

    Raises:
        ConfigError: the text is not YAML 1.2, a mapping has a key twice or a key that is no string, a value has a tag
            other than !!str or digits that cannot be read. One line that names the line of the text.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if text.lstrip("\ufeff").startswith("%YAML 1.1"):
        raise ConfigError(f"{where}, line 1: the directive %YAML 1.1 is not supported: remove it")
    _require_utf8(text, where)
    _require_plain(text, where)
    reader = YAML(typ="safe")
    try:
        root = reader.compose(io.StringIO(text))
        for place, fault in _faults(root):
            raise ConfigError(f"{where}, line {place.start_mark.line + 1}: {fault}")
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {_describe(error, text)}") from None
    except (ValueError, OverflowError) as error:  # a date that is none, an integer of thousands of digits
        line = next(one.start_mark.line + 1 for one in _nodes(root) if not _is_readable(one))
        reason = str(error).partition(";")[0]
        raise ConfigError(
            f"{where}, line {line}: the value cannot be read ({reason}): put it in quotes"
        ) from None


def format_yaml(values: Any) -> str:
    """Write values as YAML that DVC and `parse_yaml` read back as the same values; the order of keys is kept."""
    from ruamel.yaml import YAML

    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its type is inferred from None
    writer.allow_unicode = True
    writer.width = _WIDTH
    text = io.StringIO()
    writer.dump(values, text)
    return text.getvalue()


def _require_utf8(text: str, where: str) -> None:
    """Refuse the letters by which Python stands for bytes of the command line that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise ConfigError(f"{where} is not YAML: line {line}: a byte that is not UTF-8") from None


def _require_plain(text: str, where: str) -> None:
    """Refuse deep nesting before a composer, which calls itself for each level, exhausts the stack; and tags.

    A constructor trusts a tag: of `!!int ''` it reads the first digit, which is not there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    depth = 0
    try:
        for event in YAML(typ="safe").parse(io.StringIO(text)):
            kind = type(event).__name__
            depth += kind.endswith("StartEvent") - kind.endswith("EndEvent")
            line = event.start_mark.line + 1
            if depth > _MAX_DEPTH:
                raise ConfigError(f"{where}, line {line}: more than {_MAX_DEPTH} levels of nesting")
            if (tag := getattr(event, "tag", None)) not in (None, _STRING):
                shown = str(tag).replace(_STANDARD, "!!")
                raise ConfigError(
                    f"{where}, line {line}: the tag {shown} is not supported, only !!str: write the value without it"
                )
    except YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {_describe(error, text)}") from None


def _faults(root: Any) -> Iterator[tuple[Any, str]]:
    """Yield each node that is refused, and why."""
    seen: set[int] = set()
    waiting = [] if root is None else [(root, frozenset[int]())]
    while waiting:
        node, above = waiting.pop(0)
        if id(node) in above:
            yield node, "the alias is inside the value that it repeats: write the value out"
            return
        if id(node) in seen or not isinstance(node.value, list):
            continue
        seen.add(id(node))
        inside = above | {id(node)}
        if node.id == "mapping":
            yield from _faults_of_keys(node)
            waiting += [(child, inside) for pair in node.value for child in pair]
        else:
            waiting += [(child, inside) for child in node.value]


def _nodes(root: Any) -> Iterator[Any]:
    """Yield the scalar nodes, in order; a part that aliases repeat, only once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if not isinstance(node.value, list):
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            waiting[:0] = [
                one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))
            ]


def _is_readable(scalar: Any) -> bool:
    from ruamel.yaml import YAML

    if scalar.tag == _STRING:
        return True
    try:
        YAML(typ="safe").load(scalar.value)
    except (ValueError, OverflowError):
        return False
    return True


def _faults_of_keys(mapping: Any) -> Iterator[tuple[Any, str]]:
    first: dict[str, int] = {}
    for key, _ in mapping.value:
        line = key.start_mark.line + 1
        if key.tag == _MERGE:
            continue
        if key.tag != _STRING:
            shown = f"{key.value!r} is not a string" if isinstance(key.value, str) else f"is a {key.id}"
            yield key, f"the key {shown}: put it in quotes"
        elif key.value in first:
            yield key, f"the key {key.value!r} is there twice, first in line {first[key.value]}: remove one"
        first.setdefault(str(key.value), line)


def _describe(error: Any, text: str) -> str:
    """Say in one line what the parser found and where."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:  # a character that YAML does not allow
        place = getattr(error, "position", 0)
        return f"line {text.count(chr(10), 0, place) + 1}: {getattr(error, 'reason', error)}"
    line = mark.line + 1
    problem = " ".join(str(getattr(error, "problem", error)).split())
    if line > (last := len(text.splitlines())):
        return f"at the end{f' (after line {last})' if last > 1 else ''}: {problem}"
    if "\t" in _indentation(text, mark.line):
        return f"line {line}: a tab in the indentation; use spaces"
    return f"line {line}, column {mark.column + 1}: {problem}"


def _indentation(text: str, line: int) -> str:
    lines = text.splitlines()
    found = lines[line] if line < len(lines) else ""
    return found[: len(found) - len(found.lstrip())]
