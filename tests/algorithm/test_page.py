"""docs/algorithm.md leads from each equation to its function, and has a section for every method."""

import importlib
import re
from pathlib import Path

from srpo_core.algorithm import METHODS

PAGE = (Path(__file__).parents[2] / "docs/algorithm.md").read_text(encoding="utf-8")
FLOORS = ("srpo_core.algorithm", "srpo_core")


def find(module, name):
    """An attribute such as Learner.step of a module of the algorithm, or of a floor above it."""
    for floor in FLOORS:
        try:
            found = importlib.import_module(f"{floor}.{module}")
        except ModuleNotFoundError:
            continue
        for part in name.split("."):
            found = getattr(found, part)
        return found
    raise AssertionError(f"{module} is no module")


def test_every_equation_leads_to_a_function_that_exists():
    table = PAGE[
        PAGE.index("| what | formula | where |") : PAGE.index("\n\n", PAGE.index("| what | formula"))
    ]
    rows = table.splitlines()[2:]
    for row in rows:
        places = re.findall(r"`(\w+)\.([\w.]+)`", row.rsplit(" | ", 1)[1])
        assert places, row
        for module, name in places:
            assert callable(find(module, name)), row
    assert len(rows) >= 15


def test_every_method_has_a_section_with_the_file_that_holds_it():
    for name, entry in METHODS.items():
        section = PAGE[PAGE.index(f"\n### {name}\n") :]
        file = entry.run.__module__.rsplit(".", 1)[1] + ".py"
        assert section.split("\n")[3].startswith(f"`{file}`"), name
        assert f"| `{name}` |" in PAGE
