"""The directories that a local Ray leaves in the temporary directory: which are of this project, and no longer used.

Ray itself removes none of them. The process that starts Ray holds a lock on a file in the session's directory, so a
session of this project is known by that file, and one that is used by its lock.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from srpo_core.runtime import file_lock
from srpo_core.runtime.file_lock import FileLock
from srpo_core.runtime.machine import RAY_TMPDIR, SYSTEM_TMPDIR, TMPDIR

MARK: Final = "srpo.lock"
_SESSIONS: Final = "ray/session_*_*"
_OWN_DIRECTORY: Final = "srpo-{}"  # in the system's temporary directory, for long TMPDIRs


def hold_session(session: Path) -> FileLock | None:
    """Mark the directory of a Ray that this process has started; the lock is held until it is released."""
    return file_lock.try_acquire(session / MARK)


def unused_sessions() -> Iterator[Path]:
    """Yield the session directories of this project and this user that no process uses."""
    commands = list(_command_lines())
    for root in _roots():
        for session in sorted(root.glob(_SESSIONS)):
            if session.is_symlink() or not session.is_dir() or session.stat().st_uid != os.geteuid():
                continue
            mark = session / MARK
            is_ours = mark.is_file() and not mark.is_symlink()
            if is_ours and not file_lock.is_held(mark) and not any(session.name in one for one in commands):
                yield session


def _roots() -> list[Path]:
    named = [os.environ.get(name) for name in (RAY_TMPDIR, TMPDIR)]
    own = Path(SYSTEM_TMPDIR) / _OWN_DIRECTORY.format(os.geteuid())
    return list(dict.fromkeys([Path(one).absolute() for one in (*named, SYSTEM_TMPDIR, own) if one]))


def _command_lines() -> Iterator[str]:
    """Yield the command line of each process; those of Ray name their session."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
