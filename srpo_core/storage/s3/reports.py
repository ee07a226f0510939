"""The reports of runs in a bucket: reports/<run>/, for people."""

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from srpo_core.storage.manifest import report_key
from srpo_core.storage.s3.bucket import Bucket

HTML: Final = "text/html; charset=utf-8"
_KINDS: Final = {".html": HTML}  # of files, by suffix, that `mimetypes` names without their charset


class BucketReports:
    """The reports in the bucket of a store; see `Reports` for the methods."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def keep(self, run_id: str, files: Mapping[str, Path]) -> None:
        """Write the files of a report, each with its type, so that a browser shows it."""
        below = report_key(run_id)
        with self._bucket.errors():
            for name, path in files.items():
                kind = _KINDS.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
                self._bucket.put(f"{below}/{name}", path.read_bytes(), ContentType=kind)

    def remove(self, run_id: str) -> None:
        """Remove the files of a report, if there are any."""
        below = f"{report_key(run_id)}/"
        with self._bucket.errors():
            self._bucket.delete_all([f"{below}{name}" for name in self._bucket.keys(below)])
