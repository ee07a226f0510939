"""Directories in which a benchmark runs single stages of the pipeline with settings of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from srpo_core.config import PARAMS_FILE

ROOT: Final = Path(__file__).resolve().parents[1]
LINKED: Final = ("assets", "srpo_core", "dvc.yaml", "requirements.lock", "profiles")


def prepare(work: Path, values: Mapping[str, Any], finished: Mapping[str, Path]) -> None:
    """Prepare a directory with these settings and links to this checkout's code and data.

    finished: directories of the outputs of stages that need not run again, by their path in the directory.
    """
    (work / "runs").mkdir(parents=True, exist_ok=True)
    (work / PARAMS_FILE).write_text(yaml.safe_dump(dict(values), sort_keys=False))
    for name, target in {**{name: ROOT / name for name in LINKED}, **finished}.items():
        link = work / name
        if not (link.is_symlink() and link.readlink() == target):
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def run_stage(work: Path, name: str) -> None:
    """Run a stage in a prepared directory, unless it has run there already."""
    if not (work / f"runs/{name}.done").exists():
        run_srpo(work, ["stage", name], allowed=(0,))
        (work / f"runs/{name}.done").touch()


def run_srpo(work: Path, words: Sequence[str], *, allowed: Sequence[int]) -> int:
    """Run a command of `srpo` in a prepared directory; return its exit code, one of those allowed, else `SystemExit`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SRPO_HOME": str(work / ".srpo")}
    done = subprocess.run(
        [sys.executable, "-m", "srpo_core", *words],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in allowed:
        lines = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
        raise SystemExit(f"'srpo {' '.join(words)}' in {work} failed: {lines[-1]}")
    return done.returncode
