"""Make a file with a secret once, that only this user can read."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

MODE: Final = 0o600


def write_once(path: Path, secret: str) -> None:
    """Write `secret` to a file with mode 0600, unless the file exists: whole or not at all, also beside other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secret)
            os.link(partial, path)  # never over one that another process has made
        finally:
            partial.unlink()
