"""What is given as a source and is none: each gets one line that says what it is and what to give."""

import re
from pathlib import Path
from typing import Final

from srpo_core.errors import DataError

_HUB_ID: Final = re.compile(r"(?:hf://datasets/)?(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)/?")
_HUB_URL: Final = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/(?P<id>[\w.-]+/[\w.-]+)(?:/.*)?"
)
_WEIGHTS: Final = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".gguf", ".pkl", ".npz"})
_PACKED: Final = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar", ".gz", ".zst")
_LFS: Final = b"version https://git-lfs.github.com/spec/"
# where data versions are, which a checkout may not have yet
_VERSIONS: Final = Path("data")
_LOOKED_AT: Final = 1000
_DATA: Final = frozenset({".json", ".jsonl", ".parquet", ".csv", ".tsv", ".tar", ".gz"})


def require_local(source: str, layout: str) -> Path:
    """Return the path of a source on this machine.

    layout: what the format of the settings takes.

    Raises:
        DataError: it is a URL, an id of the hub, a file of another kind, or a broken download; or it does not exist.
    """
    refuse_elsewhere(source)
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source} is missing: give {layout}")
    if path.is_file():
        _refuse_file(path, layout)
    _refuse_broken_downloads([path] if path.is_file() else _data_files(path))
    return path


def refuse_elsewhere(source: str) -> None:
    """Raise `DataError` for a URL, a bucket or an id of the hub, which name nothing on this machine."""
    if found := _HUB_URL.fullmatch(source):
        raise DataError(f"{source} is a page of the Hugging Face hub: {_how_to_download(found['id'])}")
    if source.startswith("hf://"):
        found = _HUB_ID.fullmatch(source)
        name = found["id"] if found else "OWNER/NAME"
        raise DataError(f"{source} is a data set of the Hugging Face hub: {_how_to_download(name)}")
    if source.startswith("s3://"):
        raise DataError(
            f"{source} is in object storage, which only 'srpo data {source}' reads: it copies the data and makes a version "
            "of them; then set ingest.source to data/<name>"
        )
    if "://" in source:
        raise DataError(
            f"{source} is a URL: download it, and give the directory or file; s3:// is read by 'srpo data'"
        )
    parent = Path(source).parent
    if (found := _HUB_ID.fullmatch(source)) and not parent.exists() and parent != _VERSIONS:
        raise DataError(
            f"{source} is not on this machine; if it is a data set of the Hugging Face hub: {_how_to_download(found['id'])}"
        )


def _how_to_download(name: str) -> str:
    directory = name.rpartition("/")[2]
    return f"run 'hf download {name} --repo-type dataset --local-dir {directory}', then give {directory} as the source"


def _refuse_file(path: Path, layout: str) -> None:
    if path.suffix in _WEIGHTS:
        raise DataError(f"{path} is a file of tensors or weights, and no data set: give {layout}")
    if packed := next((suffix for suffix in _PACKED if path.name.endswith(suffix)), None):
        raise DataError(f"{path} is a packed file ({packed}): unpack it, then give {layout}")


def _data_files(directory: Path) -> list[Path]:
    """Return the first files below a directory that may be data, without its images."""
    found = [path for path in directory.glob("*") if path.suffix in _DATA and path.is_file()]
    found += [path for path in directory.glob("*/*") if path.suffix in _DATA and path.is_file()]
    return sorted(found)[:_LOOKED_AT]


def _refuse_broken_downloads(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            start = file.read(len(_LFS) + 64)
        if start.startswith(_LFS):
            raise DataError(
                f"{path} is a Git LFS pointer and not the file itself: run 'git lfs pull' in its checkout, or 'hf download'"
            )
        if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise DataError(
                f"{path} is an HTML page and not the file itself: a download that needs a login gives one; download it again"
            )
        if not start:
            raise DataError(f"{path} is empty: download it again")
