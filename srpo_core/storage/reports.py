"""The reports of runs in a store on disk: reports/<run>/, for people."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from srpo_core.storage.files import disk_errors
from srpo_core.storage.incoming import Incoming
from srpo_core.storage.manifest import report_key


class DirectoryReports:
    """The reports in the directory of a store; see `Reports` for the methods."""

    def __init__(self, root: Path, incoming: Incoming) -> None:
        self._root, self._incoming = root, incoming

    def keep(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Copy the files of a report, and rename their directory into place."""
        target = self._root / report_key(run_id)
        what = f"cannot keep the report of run {run_id}"
        with disk_errors(str(self._root), what), self._incoming.new_directory() as partial:
            for name, path in files.items():
                shutil.copyfile(path, partial / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            partial.rename(target)

    def remove(self, run_id: str) -> None:
        """Remove the report of a run, if there is one."""
        what = f"cannot remove the report of run {run_id}"
        with disk_errors(str(self._root), what), suppress(FileNotFoundError):
            shutil.rmtree(self._root / report_key(run_id))
