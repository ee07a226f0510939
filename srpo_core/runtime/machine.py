"""Adapt the environment of a run to its machine: proxies, home directory, caches, temporary files, text encoding.

Libraries write below HOME and TMPDIR. In a container with a random user id HOME is `/` or unset, and on a cluster
TMPDIR may be longer than the path of a Unix socket. Only what does not work is replaced: by directories below
`SRPO_HOME`, or, for sockets, by a short directory of this user in /tmp.
"""

import logging
import os
import pwd
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.artifacts import private_home, private_temporary_directory, user_path
from srpo_core.runtime.proxies import direct_environment, useless_proxies
from srpo_core.runtime.secret_file import write_once

# Ray's sockets are TMPDIR/ray/session_<date>_<time>_<microseconds>_<process>/sockets/plasma_store
SOCKET_BYTES: Final = 107
LONGEST_TMPDIR: Final = SOCKET_BYTES - len(
    "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)
SYSTEM_TMPDIR: Final = "/tmp"  # noqa: S108  # the default of every library
SHARED_DIRECTORIES: Final = (SYSTEM_TMPDIR, "/var/tmp", "/dev/shm")  # noqa: S108  # each user has a directory in it
OWN_PLACES: Final = "user"  # below SRPO_HOME: home directory, caches, and Ray's token of this machine
HOME: Final = "HOME"
TMPDIR: Final = "TMPDIR"
RAY_TMPDIR: Final = "RAY_TMPDIR"

# variables of libraries that write below HOME, and where they write without the variable
_BELOW_HOME: Final[Mapping[str, str]] = MappingProxyType(
    {
        "XDG_CACHE_HOME": ".cache",
        "TRITON_HOME": ".triton",
        "CUDA_CACHE_PATH": ".nv",
        "MPLCONFIGDIR": ".config/matplotlib",
        "WANDB_CONFIG_DIR": ".config/wandb",
        "WANDB_DATA_DIR": ".local/share/wandb",
    }
)
# variables of directories that an image may have set for another user
_IF_SET: Final = (
    "HF_HOME",
    "HF_HUB_CACHE",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "NUMBA_CACHE_DIR",
    "WANDB_CACHE_DIR",
    "PREFECT_HOME",
)
_NAMES_OF_USER: Final = ("LOGNAME", "USER", "LNAME", "USERNAME")  # as getpass.getuser reads them
_RAY_TOKEN: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105  # the name of a variable
_RAY_NEEDS_NO_FILE: Final = ("RAY_AUTH_TOKEN", _RAY_TOKEN, "RAY_ADDRESS")
_UTF8: Final = MappingProxyType({"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"})

log = logging.getLogger(__name__)


def adapt_to_machine() -> None:
    """Set the variables of `machine_environment` for this process and those that it starts, which print UTF-8."""
    for name in useless_proxies(os.environ):
        log.warning(
            "%s is ignored: Prefect's client cannot use such a proxy", name
        )  # its value may have a password
    given = os.environ.get(TMPDIR)
    adapted = machine_environment(os.environ, user_path(os.environ.get("SRPO_HOME", ".srpo")))
    for name in set(os.environ) - set(adapted):
        del os.environ[name]
    os.environ.update({**adapted, **_UTF8})
    if given and Path(given).absolute() != Path(adapted[TMPDIR]):
        log.warning("TMPDIR=%s cannot be written: temporary files are in %s", given, adapted[TMPDIR])


def machine_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return an environment in which the libraries of a run work on this machine; what works already is unchanged.

    home: SRPO_HOME, below which replacements are made. If it cannot be written either, nothing is replaced: whoever
    writes there reports it, and so does `srpo doctor`.
    """
    given = {name: value for name, value in environment.items() if name not in useless_proxies(environment)}
    given |= direct_environment(given)
    given |= dict(_user(given))
    own = home / OWN_PLACES
    if can_write(own):
        given |= dict(_places_below_home(given, own))
    given |= dict(_temporary_directories(given, own))
    return given


def text_environment() -> dict[str, str]:
    """Return the variables with which a Python process reads and prints UTF-8, whatever the user's locale is."""
    return dict(_UTF8)


def can_write(path: Path) -> bool:
    """Whether this process may write to a directory, or create it and the missing ones above it."""
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def can_read(path: Path) -> bool:
    """Whether a path is an absolute one of a directory that this process may enter and list."""
    return path.is_absolute() and path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def fits_sockets(path: Path) -> bool:
    """Whether Ray can make its sockets below a directory: it is writable, short enough, and ASCII."""
    return is_temporary(path) and len(os.fsencode(path)) <= LONGEST_TMPDIR and str(path).isascii()


def is_temporary(path: Path) -> bool:
    """Whether temporary files can be made in a directory, from every working directory."""
    return path.is_absolute() and path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def ray_token_directory(environment: Mapping[str, str]) -> list[Path]:
    """Return the directory in which Ray would make its token, which a local Ray needs; none if it has a token."""
    directory = Path(environment.get(HOME, "")) / ".ray"
    if any(environment.get(name) for name in _RAY_NEEDS_NO_FILE) or os.access(
        directory / "auth_token", os.R_OK
    ):
        return []
    return [next(one for one in (directory, *directory.parents) if os.path.lexists(one))]


def _user(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield a name for a user id that has none: libraries that ask for it would fail."""
    if any(environment.get(name) for name in _NAMES_OF_USER) or _entry() is not None:
        return
    for name in ("LOGNAME", "USER"):
        yield name, f"uid{os.getuid()}"


def _places_below_home(environment: Mapping[str, str], own: Path) -> Iterator[tuple[str, str]]:
    """Yield HOME if it cannot be read, then the caches and Ray's token that cannot be written."""
    user = _home_directory(environment)
    if user is None:
        private_home(own.parent)
        user = own
        own.mkdir(exist_ok=True)
    if environment.get(HOME) != str(user):
        yield HOME, str(user)
    for name, default in _BELOW_HOME.items():
        if not can_write(Path(environment.get(name) or user / default)):
            yield name, str(_made(own / name.lower()))
    for name in _IF_SET:
        if environment.get(name) and not can_write(Path(environment[name])):
            yield name, str(_made(own / name.lower()))
    if not all(map(can_write, ray_token_directory({**environment, HOME: str(user)}))):
        yield _RAY_TOKEN, str(_token(own))
    hub = user / ".cache/huggingface/token"
    if not can_write(user / ".cache") and os.access(hub, os.R_OK):
        yield "HF_TOKEN_PATH", environment.get("HF_TOKEN_PATH") or str(hub)


def _home_directory(environment: Mapping[str, str]) -> Path | None:
    """Return the home directory that can be read: HOME, or without it that of the user's entry; else None."""
    entry = _entry()
    named = environment.get(HOME) or (entry.pw_dir if entry else "")
    return path if named and can_read(path := Path(named)) else None


def _entry() -> pwd.struct_passwd | None:
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid())
    return None


def _made(path: Path) -> Path:
    private_home(path.parent.parent)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _token(own: Path) -> Path:
    """Return a file with a token for Ray, which is made once."""
    path = _made(own) / "ray_auth_token"
    write_once(path, secrets.token_hex(32))
    return path


def _temporary_directories(environment: Mapping[str, str], own: Path) -> Iterator[tuple[str, str]]:
    """Yield TMPDIR if it cannot be written, and RAY_TMPDIR if Ray's sockets do not fit below TMPDIR."""
    given = Path(environment.get(TMPDIR) or SYSTEM_TMPDIR)
    if not given.is_absolute() and is_temporary(given.absolute()):
        given = given.absolute()
    elif not is_temporary(given):
        given = next(filter(is_temporary, map(Path, SHARED_DIRECTORIES)), own / "tmp")
        if given.is_relative_to(own) and can_write(own):
            _made(given)
    if str(given) != environment.get(TMPDIR, SYSTEM_TMPDIR):
        yield TMPDIR, str(given)
    ray = Path(environment.get(RAY_TMPDIR) or given)
    if not fits_sockets(ray) and (short := _short_directory(own)):
        yield RAY_TMPDIR, str(short)


def _short_directory(own: Path) -> Path | None:
    """Return a directory of this user in which Ray's sockets fit, or None if there is no place for one."""
    for shared in map(Path, SHARED_DIRECTORIES):
        if fits_sockets(shared):
            return private_temporary_directory(shared / f"srpo-{os.geteuid()}")
    return _made(own / "tmp") if can_write(own) and fits_sockets(_made(own / "tmp")) else None
