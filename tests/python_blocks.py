"""Find the Python blocks of a Markdown page, and the names in them that are not defined."""

import ast
import builtins
import re


def python_blocks(text: str) -> list[str]:
    """Return the source of each block, in order."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def unbound_names(source: str) -> set[str]:
    """Return the names that a block uses but neither imports nor assigns."""
    nodes = list(ast.walk(ast.parse(source)))
    bound = set(dir(builtins)) | {node.arg for node in nodes if isinstance(node, ast.arg)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names} - bound
