"""Groups of commands with a default one."""

from collections.abc import Sequence
from typing import Any

from typer.core import TyperGroup


def group_with_default(name: str) -> type[TyperGroup]:
    """Return the class of a group: a first argument that names none of its commands is the first one of `name`.

    With the default `add` of `srpo data`, `srpo data ./show` or `srpo data add show` adds a directory named `show`.
    """

    class Commands(TyperGroup):
        default_command = name

        def parse_args(self, ctx: Any, args: Sequence[str]) -> list[str]:
            """Insert the default command."""
            known = {*self.commands, *ctx.help_option_names}
            given = list(args)
            return super().parse_args(ctx, [name, *given] if given and given[0] not in known else given)

    return Commands
