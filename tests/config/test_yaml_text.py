"""One reader of YAML, which agrees with DVC and refuses what DVC refuses late."""

import ast
from pathlib import Path

import pytest
from dvc.utils.serialize import parse_yaml as parse_as_dvc

from srpo_core.config import load_settings, read_values, write_settings
from srpo_core.config.yaml_text import format_yaml, parse_yaml, read_yaml
from srpo_core.errors import ArtifactError, ConfigError
from srpo_core.release.provenance import require_reproduced
from srpo_core.runtime.dvc_yaml import read_stages
from srpo_core.weights.models_lock import read_lock

ROOT = Path(__file__).resolve().parents[2]
SHARED = "base: &base {path: a, weight: 1}\nmore: {<<: *base, weight: 2}\nagain: *base\n"
AMBIGUOUS = [
    *(
        "yes",
        "on",
        "no",
        "Off",
        "y",
        "0123",
        "0o17",
        "0x1f",
        "1:30",
        "1e-4",
        "1E5",
        "1_000",
        "~",
        "null",
        "TRUE",
    ),
    *(
        ".5",
        "1.",
        "-.inf",
        "2024-01-01",
        "=",
        "<<",
        "",
        " a",
        "a: b",
        "#x",
        "- a",
        "é墨",
        "a\nb",
        "'",
        "%a",
        "x" * 300,
    ),
]


@pytest.mark.parametrize(
    "value", [one for one in AMBIGUOUS if one not in ("=", "<<", "a: b", "- a", "é墨", "a\nb", "'", "%a")]
)
def test_a_plain_value_means_the_same_as_to_dvc(value):
    text = f"key: {value}\n"
    assert parse_yaml(text, "params.yaml") == parse_as_dvc(text, "params.yaml")


@pytest.mark.parametrize(
    ("value", "meaning"), [("yes", "yes"), ("0123", 123), ("1:30", "1:30"), ("1e-4", 0.0001)]
)
def test_values_are_those_of_yaml_1_2(value, meaning):
    assert parse_yaml(f"key: {value}", "params.yaml") == {"key": meaning}


def test_aliases_and_merge_keys_are_read_and_a_merged_key_may_be_replaced():
    found = parse_yaml(SHARED, "params.yaml")
    assert found == parse_as_dvc(SHARED, "params.yaml")
    assert found["more"] == {"path": "a", "weight": 2}


def test_written_values_are_read_back_as_the_same_here_and_by_dvc_in_the_same_order():
    values = {"words": AMBIGUOUS, "z": {"rate": 2e-05, "none": None, "on": True}, "a": [], "b": {}}
    text = format_yaml(values)
    assert parse_yaml(text, "params.yaml") == values
    assert parse_as_dvc(text, "params.yaml") == values
    assert list(parse_yaml(text, "params.yaml")) == list(values)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice, first in line 1: remove one"),
        ("a:\n  b: 1\n  c: {d: 1, 'd': 2}\n", "line 3: the key 'd' is there twice, first in line 3"),
        ("- a: 1\n- {b: 1,\n   b: 2}\n", "line 3: the key 'b' is there twice, first in line 2"),
        ("a: 1\n2: b\n", "line 2: the key '2' is not a string: put it in quotes"),
        ("a: 1\ntrue: b\n", "line 2: the key 'true' is not a string"),
        ("? [a, b]\n: 1\n", "line 1: the key is a sequence: put it in quotes"),
        ("a:\n\tb: 1\n", "line 2: a tab in the indentation; use spaces"),
        ("a: [1,\n", "is not YAML: at the end: did not find expected node content"),
        ("a: 1\nb: [1,\n", "is not YAML: at the end (after line 2): did not find expected node content"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1: but found another document"),
        (
            "a: 1\nb: !!python/object:os.system x\n",
            "line 2: the tag !!python/object:os.system is not supported",
        ),
        (
            "a: 1\nb: !!int ''\n",
            "line 2: the tag !!int is not supported, only !!str: write the value without it",
        ),
        ("a: !!bool maybe\n", "line 1: the tag !!bool is not supported"),
        ("a:\n- !!float ''\n", "line 2: the tag !!float is not supported"),
        ("a: !!omap [x: 1, x: 2]\n", "line 1: the tag !!omap is not supported"),
        ("a: !!set {x, y}\n", "line 1: the tag !!set is not supported"),
        ("!own a: 1\n", "line 1: the tag !own is not supported"),
        ("a: ! 12\n", "line 1: the tag ! is not supported"),
        ("a: 1\nb: \x00\n", "line 2: control characters are not allowed"),
        ("a: &a [*a]\n", "line 1: the alias is inside the value that it repeats"),
        ("a: *b\n", "line 1, column 4: found undefined alias"),
        ("%YAML 1.1\n---\na: yes\n", "line 1: the directive %YAML 1.1 is not supported"),
        ("a: " + "[" * 200_000, "line 1: more than 100 levels of nesting"),
        ("a: 1\nb: " + "9" * 5000, "line 2: the value cannot be read (Exceeds the limit (4300 digits)"),
        (
            "a: 1\nb: 2024-13-45",
            "line 2: the value cannot be read (month must be in 1..12): put it in quotes",
        ),
        ("a: [1, x]\nb: {c: *d}\n", "found undefined alias"),
        ("a: '2024-13-45'\nb: [1, {c: 2024-13-45}]\n", "line 2: the value cannot be read"),
        ("a: +_\n", "line 1: the value cannot be read"),
        ("a: 1\nb: ._\n", "line 2: the value cannot be read"),
    ],
)
def test_what_dvc_would_refuse_or_misread_is_refused_in_one_line_with_its_place(tmp_path, text, fault):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_values(path)
    assert str(caught.value).startswith(str(path))
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_of_the_command_line_that_is_not_utf_8_is_named():
    with pytest.raises(ConfigError, match="the value is not YAML: line 2: a byte that is not UTF-8"):
        parse_yaml(b"1\n\xff".decode(errors="surrogateescape"), "the value")


def test_the_tag_of_a_string_is_read():
    assert parse_yaml("a: !!str 12\n", "params.yaml") == {"a": "12"}


@pytest.mark.parametrize("content", [b"a: \xff\n", "a: 1\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_named(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"params.yaml is not YAML: byte \d is not UTF-8; save the file as UTF-8"
    ):
        load_settings(tmp_path / "params.yaml")


def test_a_byte_order_mark_is_ignored_and_a_directory_is_named(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(tmp_path / "params.yaml") == {"a": 1}
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


TWICE = "stages:\n  a: {cmd: x}\n  a: {cmd: y}\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("profiles/tiny.yaml", lambda root: write_settings(root, profile="tiny", patch={})),
        ("dvc.yaml", read_stages),
        ("models.lock", lambda root: read_lock(root / "models.lock")),
        ("dvc.lock", lambda root: require_reproduced(root, [])),
    ],
)
def test_every_yaml_file_of_the_project_is_refused_if_it_has_a_key_twice(tmp_path, name, read):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(TWICE)
    with pytest.raises((ConfigError, ArtifactError), match=r"line 3: the key 'a' is there twice"):
        read(tmp_path)


def test_no_module_of_the_package_reads_yaml_in_another_way():
    """The header of a model card is written for readers on the hub."""
    importing = set()
    for path in [*(ROOT / "srpo_core").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            if any(
                name.split(".")[0] in ("yaml", "ruamel") or name == "dvc.utils.serialize" for name in names
            ):
                importing.add(str(path.relative_to(ROOT)))
    assert importing == {"srpo_core/config/yaml_text.py", "srpo_core/release/card.py"}


def test_every_shipped_yaml_file_is_read_as_dvc_reads_it():
    for path in [*ROOT.glob("*.yaml"), *ROOT.glob("*.lock"), *(ROOT / "profiles").glob("*.yaml")]:
        if path.name != "requirements.lock":
            assert read_yaml(path) == parse_as_dvc(path.read_text(encoding="utf-8"), str(path)), path


@pytest.mark.parametrize("word", ["yes", "on", "no", "'true'", "1"])
def test_a_word_or_number_for_a_boolean_is_refused_because_dvc_would_compare_the_word(tmp_path, word):
    tiny = (ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(tiny.replace("use_gpu: false", f"use_gpu: {word}"))
    with pytest.raises(ConfigError, match=r"resources.use_gpu: write true or false \(got "):
        load_settings(tmp_path / "params.yaml")
