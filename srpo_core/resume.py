"""Where a stage keeps what a killed run can go on from: outside its outputs, which DVC deletes first.

The directory is named by a hash of all that decides the result (the stage's settings, inputs and
code, as dvc.yaml lists them), so that a run never goes on from the state of another experiment.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from srpo_core.artifacts import home, require, sha256
from srpo_core.config import PARAMS_FILE
from srpo_core.errors import SrpoError

log = logging.getLogger(__name__)


@contextmanager
def resumable(stage: str) -> Iterator[Path]:
    """Hold a stage's resume directory for one run; it goes when the run succeeds and stays when not.

    Raises:
        SrpoError: another living run holds it.
    """
    directory = home() / "resume" / f"{stage}-{fingerprint(stage)}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f"{directory.name}.lock").open("a+", encoding="utf-8") as lock:
        shutil.rmtree(directory.with_name(f".{directory.name}.done"), ignore_errors=True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise SrpoError(
                f"stage {stage} is running already with the same settings (process {lock.read().strip()}): "
                "wait for it, or end it and start again"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield directory
        # out of the way at once: a kill in the middle of removing must leave nothing to go on from
        done = directory.rename(directory.with_name(f".{directory.name}.done"))
        shutil.rmtree(done)


def fingerprint(stage: str) -> str:
    """12 hex digits of the hash of a stage's settings, inputs and code, as dvc.yaml lists them."""
    settings = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    definition = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
    parts = {name: settings[name] for name in definition["params"]}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for dependency in definition["deps"]:
        path = require(Path(resolve(dependency, settings)))
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file} {sha256(file)}\n".encode())
    return digest.hexdigest()[:12]


def resolve(template: str, settings: Mapping[str, Any]) -> str:
    """Fill `${a.b}` in a path of dvc.yaml from the settings, as DVC does."""

    def value(match: re.Match[str]) -> str:
        found: Any = settings
        for key in match[1].split("."):
            found = found[key]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, template)
