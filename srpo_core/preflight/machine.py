"""Check what a run needs of its machine: proxies, home and temporary directories, Prefect's server, DVC's configuration.

A run adapts itself to most machines (`srpo_core/runtime/machine.py`); a finding names what was replaced, and fails only
where a run would.
"""

import os
import sys
import tempfile
from pathlib import Path

from srpo_core.artifacts import home
from srpo_core.errors import SrpoError
from srpo_core.runtime.machine import (
    LONGEST_TMPDIR,
    OWN_PLACES,
    RAY_TMPDIR,
    SYSTEM_TMPDIR,
    TMPDIR,
    fits_sockets,
    ray_token_directory,
)
from srpo_core.runtime.prefect_api import API_URL, require_prefect_server, with_own_secret
from srpo_core.runtime.proxies import proxy_variables
from srpo_core.services.running import with_running_services
from srpo_core.workspace.dvc_config import require_config

Found = tuple[bool, str]


def check_home(_: object) -> Found:
    """Write a file below SRPO_HOME and where Ray keeps its token, and name the variables that point below SRPO_HOME."""
    try:
        own = home()
        for directory in (own, *ray_token_directory(os.environ)):
            _write_below(directory)
    except (OSError, SrpoError) as error:
        return False, f"{_line(error)}: set SRPO_HOME to a directory that you can write"
    moved = [
        name
        for name, value in os.environ.items()
        if name.isupper() and Path(value).is_relative_to(own / OWN_PLACES)
    ]
    return True, f"{own}" + (
        f"; below it, because they cannot be written elsewhere: {', '.join(sorted(moved))}" if moved else ""
    )


def check_temporary(_: object) -> Found:
    """Write a file below TMPDIR, and compare the path of Ray's sockets with the longest that is allowed."""
    given = os.environ.get(TMPDIR) or SYSTEM_TMPDIR
    ray = os.environ.get(RAY_TMPDIR) or given
    try:
        for directory in {given, ray}:
            _write_below(Path(directory))
    except OSError as error:
        return False, f"{_line(error)}: set TMPDIR to a directory that you can write"
    if not fits_sockets(Path(ray)):
        return False, (
            f"{ray} does not hold Ray's sockets, and no other directory was found: set RAY_TMPDIR to one that you can "
            f"write, of at most {LONGEST_TMPDIR} bytes in ASCII"
        )
    return True, given + (
        f"; Ray's sockets are in {ray}, because the path is too long for them or not ASCII"
        if ray != given
        else ""
    )


def check_proxy(_: object) -> Found:
    """Name the proxies, and whether this machine is reached past them."""
    names = proxy_variables(os.environ)
    if not names:
        return True, "none"
    return True, f"{', '.join(names)}; not for {os.environ.get('no_proxy', '')}"


def check_encoding(_: object) -> Found:
    """Name the encoding of text and output."""
    return True, f"files and paths {sys.getfilesystemencoding()}, output {sys.stdout.encoding}"


def check_prefect(_: object) -> Found:
    """Ask the server of PREFECT_API_URL, or of the services that run; with the secret in SRPO_HOME, as a run does."""
    environment = with_running_services(os.environ, home())
    if not (address := environment.get(API_URL, "").strip()):
        return True, "each run starts its own server on this machine"
    require_prefect_server(with_own_secret(environment, home()))
    return True, f"{address} answers"


def check_dvc(_: object) -> Found:
    """Read DVC's configuration files."""
    try:
        require_config(Path.cwd())
    except SrpoError as error:
        return False, str(error)
    return True, "its configuration can be read"


def _write_below(directory: Path) -> None:
    """Write a file in a directory and remove it. Raises `OSError` if that cannot be done."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"srpo doctor")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
