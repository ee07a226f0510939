"""What the documentation tells a user to type, open or set exists."""

import re
from pathlib import Path

import pytest
import typer
import yaml
from python_blocks import python_blocks, unbound_names

from srpo_core.cli.app import app
from srpo_core.cli.main import PANELS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "infra/README.md",
    ROOT / "assets/tiny/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(python_blocks(path.read_text()), 1)
]
PRESET = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
FILE_TYPES = ("json", "yaml", "parquet", "tar", "md", "py")
LEFT_TO_THE_USER = {"infra/.env"}
TOP_LEVEL = "srpo_core|flows|tests|benchmarks|docs|profiles|infra|assets"


def code_of(page: Path) -> list[str]:
    """Return the page's inline code and the lines of its code blocks, without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.split(" #")[0].strip() for line in [*inline, *"\n".join(blocks).splitlines()]]


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def named_paths(page: Path) -> set[str]:
    """Return the files and directories of the repository that the page's code names."""
    found = {
        match[1].rstrip(".")
        for code in code_of(page)
        for match in re.finditer(rf"(?<![\w./-])((?:{TOP_LEVEL})/[\w./-]*)(?![\w<*…{{])", code)
    }
    return found - LEFT_TO_THE_USER


def missing_paths(page: Path) -> list[str]:
    """Return the named paths that the repository does not have."""
    return sorted(path for path in named_paths(page) if not (ROOT / path).exists())


def unknown_commands(lines: list[str]) -> list[str]:
    """Return the calls of `srpo` with an unknown command or option."""
    commands = {name: one for name, one in typer.main.get_command(app).commands.items() if not one.hidden}
    unknown = []
    for call in (
        call for line in lines for call in re.findall(r"(?:^|; |\()srpo ([a-z][a-z_-]*[^;|)]*)", line)
    ):
        name, *words = call.split()
        parts = getattr(
            commands.get(name), "commands", {}
        )  # a group, such as `srpo data`, has a default command, or options of its own
        default = parts.get(getattr(commands.get(name), "default_command", ""), commands.get(name))
        command = parts.get(words[0] if words else "", default)
        parameters = command.params if command else []
        options = {option for one in parameters for option in (*one.opts, *one.secondary_opts)}
        given = {word.split("=")[0].rstrip(".,") for word in words if word.startswith("--")}
        if name not in commands or not given <= options:
            unknown.append(f"srpo {call}")
    return unknown


def settings_of(page: Path) -> list[list[str]]:
    """Return the dotted keys in the page's code that begin with a part of the settings, and are no file or function."""
    dotted = (code.split(".") for code in code_of(page) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", code))
    return [
        keys
        for keys in dotted
        if keys[0] in PRESET
        and keys[-1] not in FILE_TYPES
        and not (ROOT / f"srpo_core/algorithm/{keys[0]}.py").exists()
    ]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_imports_or_defines_what_it_names(block):
    assert unbound_names(block) == set()


def test_the_blocks_of_the_formats_are_among_them():
    assert sum(block.id.startswith("formats.md") for block in BLOCKS) == 4


def test_a_block_that_lacks_an_import_is_found():
    assert unbound_names("import torch as t\nx = t.zeros(2)\nprint(torch, x)") == {"torch"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_that_a_page_places_in_a_file_is_defined_there(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    for name, file in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        defined = rf"^(?:def |class )?{name}\b"
        assert re.search(defined, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
            f"{name} in {file}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {anchor(one) for one in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_known(page):
    assert PANELS, "importing it registers the commands"
    assert unknown_commands(code_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_of_a_page_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match for code in code_of(page) for match in re.findall(r"(?:^|time )make ([a-z-]+)", code)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_of_a_page_is_a_key_of_the_preset(page):
    for keys in settings_of(page):
        values = PRESET
        for key in keys:
            assert key in values, ".".join(keys)
            values = values[key]


def test_an_unknown_command_and_an_unknown_option_are_found():
    assert unknown_commands(["srpo draw x", "srpo report", "srpo align --sett a=1"]) == [
        "srpo draw x",
        "srpo align --sett a=1",
    ]


def faults():
    """Return the rows of the table of faults in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = text.partition("\n## Faults\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return section, rows[1:]


def test_the_faults_are_counted_and_each_has_a_test_that_exists():
    section, rows = faults()
    assert f"\n{len(rows)} faults are caused on purpose" in section
    for row in rows:
        (place,) = re.findall(r"^`(tests/[\w/]+\.py)`: `(test_\w+)`$", row[-1].strip())
        file, name = place
        assert len(row) == 5, row
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize(
    "fault",
    (
        "run's process is killed",
        "SIGTERM",
        "worker is killed",
        "worker and run are killed",
        "server is killed",
        "Ray's head",
        "Ray worker",
        "stage is killed, in each stage",
        "cancelled in the UI, in each stage",
        "database is locked",
        "store cannot be reached for a minute",
        "disk is full while a checkpoint",
        "nightly runs overlap",
        "clock",
        "machine restarts",
    ),
)
def test_a_fault_that_a_server_meets_is_in_the_table(fault):
    assert any(fault in row[0] for row in faults()[1])
