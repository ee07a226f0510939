"""docs/algorithm.md names the function of each equation and has a section for every method."""

import importlib
import re
from pathlib import Path

from srpo_core.algorithm import METHODS

PAGE = (Path(__file__).parents[2] / "docs/algorithm.md").read_text(encoding="utf-8")
PACKAGES = ("srpo_core.algorithm", "srpo_core.training")


def find(module, name):
    """Return an attribute such as Learner.step of a module of the algorithm or of training."""
    for package in PACKAGES:
        try:
            found = importlib.import_module(f"{package}.{module}")
        except ModuleNotFoundError:
            continue
        for part in name.split("."):
            found = getattr(found, part)
        return found
    raise AssertionError(f"no module {module} in {', '.join(PACKAGES)}")


def test_every_equation_names_a_function_that_exists():
    table = PAGE[
        PAGE.index("| what | formula | function |") : PAGE.index("\n\n", PAGE.index("| what | formula"))
    ]
    rows = table.splitlines()[2:]
    for row in rows:
        places = re.findall(r"`(\w+)\.([\w.]+)`", row.rsplit(" | ", 1)[1])
        assert places, row
        for module, name in places:
            assert callable(find(module, name)), row
    assert len(rows) >= 15


def test_every_method_has_a_section_that_names_its_file():
    for name, entry in METHODS.items():
        section = PAGE[PAGE.index(f"\n### {name}\n") :]
        file = entry.run.__module__.rsplit(".", 1)[1] + ".py"
        assert section.split("\n")[3].startswith(f"`{file}`"), name
        assert f"| `{name}` |" in PAGE
