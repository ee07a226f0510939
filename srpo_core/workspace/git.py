"""Run git and return what it prints; find the reason in what git or DVC prints."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.errors import ConfigError, SrpoError

# A git hook or an alias that calls this project sets these; they name a repository, or a part of one.
_OF_A_REPOSITORY: Final = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_ATTR_SOURCE",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NAMESPACE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_QUARANTINE_PATH",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
# These change what a path or a diff means, which this project's own commands state themselves.
_OF_ARGUMENTS: Final = frozenset(
    {
        "GIT_DIFF_OPTS",
        "GIT_EXTERNAL_DIFF",
        "GIT_GLOB_PATHSPECS",
        "GIT_ICASE_PATHSPECS",
        "GIT_LITERAL_PATHSPECS",
        "GIT_NOGLOB_PATHSPECS",
    }
)
# Settings of the user that must not change what this project does in a checkout. What it commits and tags is data that
# DVC describes by digests, so it is not signed.
_OWN_SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "color.ui": "false",
        "column.ui": "never",
        "commit.cleanup": "verbatim",
        "commit.gpgSign": "false",
        "core.autocrlf": "false",  # files are recorded byte by byte
        "core.fsmonitor": "false",
        "core.hooksPath": os.devnull,
        "core.safecrlf": "false",
        "core.splitIndex": "false",
        "diff.mnemonicPrefix": "false",
        "diff.noprefix": "false",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "submodule.recurse": "false",
        "tag.forceSignAnnotated": "false",
        "tag.gpgSign": "false",
    }
)
_OPTIONS: Final = tuple(word for item in _OWN_SETTINGS.items() for word in ("-c", "=".join(item)))
_DUBIOUS: Final = "dubious ownership"
_DVC_ERROR: Final = "ERROR:"
_ADVICE: Final = "Having any troubles?"  # how DVC ends
_ERROR_LINES: Final = ("fatal:", "error:", _DVC_ERROR)


def git(
    cwd: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    umask: int = -1,
    given: str | None = None,
) -> str:
    """Run git without the user's hooks and signatures and return its output, stripped.

    Variables of this process that name a repository are ignored; those that configure git are kept. given: what git
    reads from its standard input.

    Raises:
        ConfigError: git refuses the checkout because it belongs to another user.
        SrpoError: git failed; the message has the reason that it printed, in one line.
    """
    own = _git_environment() | dict(environment or {})
    return _output(["git", *arguments], _run(["git", *_OPTIONS, *arguments], cwd, own, umask, given), cwd)


def try_git(cwd: Path, *arguments: str) -> str | None:
    """Run git as `git` does and return its output unstripped, or None if it failed or is not installed."""
    try:
        done = _run(["git", *_OPTIONS, *arguments], cwd, _git_environment())
    except SrpoError:
        return None
    return None if done.returncode else done.stdout.decode(errors="replace")


def git_path(cwd: Path, *arguments: str) -> Path:
    """Run a git command that prints one path, with whatever bytes, and return it. Raises as `git` does."""
    done = _run(["git", *_OPTIONS, *arguments], cwd, _git_environment())
    _output(["git", *arguments], done, cwd)
    return Path(os.fsdecode(done.stdout.removesuffix(b"\n")))


def list_names(cwd: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run a git command that lists names with `-z` and return them as the file system has them. Raises as `git` does."""
    own = _git_environment() | dict(environment or {})
    done = _run(["git", *_OPTIONS, *arguments], cwd, own)
    _output(["git", *arguments], done, cwd)
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]


def missing_identity(cwd: Path) -> dict[str, str]:
    """Return variables with the pipeline's name and address for what git has neither in its settings nor in variables."""
    configured = (
        try_git(cwd, "config", "--get-regexp", r"^(user|author|committer)\.(name|email)$") or ""
    ).splitlines()
    known = {key for key, _, value in (line.partition(" ") for line in configured) if value.strip()}
    return {
        f"GIT_{role.upper()}_{field.upper()}": value
        for role in ("author", "committer")
        for field, value in (("name", "srpo"), ("email", "srpo@localhost"))
        if not {f"user.{field}", f"{role}.{field}"} & known
        and not os.environ.get(f"GIT_{role.upper()}_{field.upper()}")
        and not (field == "email" and os.environ.get("EMAIL"))
    }


def without_repository_variables() -> dict[str, str]:
    """Return this process's environment without the `GIT_*` variables that name a repository."""
    return {name: value for name, value in os.environ.items() if name not in _OF_A_REPOSITORY}


def _output(command: Sequence[str], done: "subprocess.CompletedProcess[bytes]", cwd: Path) -> str:
    if done.returncode:
        printed = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace")
        if command[0] == "git" and _DUBIOUS in printed:
            raise ConfigError(
                f"git refuses {cwd}, which belongs to another user ({_DUBIOUS}): run "
                f"'git config --global --add safe.directory {cwd}' if you trust it, or use a clone of your own"
            )
        why = reason(printed.splitlines()) or f"exit code {done.returncode}"
        raise SrpoError(f"'{' '.join(command[:3])}' in {cwd} failed: {why}")
    return done.stdout.decode(errors="replace").strip()


def reason(lines: Sequence[str]) -> str:
    """Return the error line of git or DVC, which advice may follow, else the last line.

    If DVC prints several, the first one has the cause and the last one what failed. A line that ends with a colon
    continues on the next one.
    """
    lines = [line for line in lines if line.strip() and not line.startswith(_ADVICE)]
    found = [number for number, line in enumerate(lines) if line.startswith(_ERROR_LINES)]
    if not found:
        return lines[-1] if lines else ""
    ends = [found[0], found[-1]] if lines[found[0]].startswith(_DVC_ERROR) else found[:1]
    told = [" ".join(lines[at : at + 2]) if lines[at].endswith(":") else lines[at] for at in ends]
    return "; ".join(dict.fromkeys(told))


def _git_environment() -> dict[str, str]:
    """Return the environment of git: the user's, with messages in English, which `reason` reads."""
    kept = {
        name: value for name, value in without_repository_variables().items() if name not in _OF_ARGUMENTS
    }
    return kept | {"LC_ALL": "C"}


def _run(
    command: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    umask: int = -1,
    given: str | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            command,
            cwd=cwd,
            env=dict(environment),
            umask=umask,
            input=None if given is None else os.fsencode(given),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        if error.filename != command[0]:
            raise SrpoError(f"{cwd} is not a directory, so '{command[0]}' cannot run there") from None
        raise SrpoError(f"'{command[0]}' was not found: install it, or add it to PATH") from None
