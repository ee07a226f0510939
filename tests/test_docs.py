"""What the documentation tells a user to type is complete."""

from pathlib import Path

import pytest
from python_blocks import python_blocks, unbound_names

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(python_blocks(path.read_text()), 1)
]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_imports_or_makes_what_it_names(block):
    assert unbound_names(block) == set()


def test_the_blocks_of_the_formats_are_among_them():
    assert sum(block.id.startswith("formats.md") for block in BLOCKS) == 4


def test_a_block_that_lacks_an_import_is_seen():
    assert unbound_names("import torch as t\nx = t.zeros(2)\nprint(torch, x)") == {"torch"}
