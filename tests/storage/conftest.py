"""Fixtures: the files of a small release, and an empty store of each kind."""

import hashlib

import pytest


def manifest_of(files):
    """Return the manifest of `files` (name: path)."""
    entries = {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for name, path in files.items()
    }
    content = hashlib.sha256(repr(sorted(entries.items())).encode()).hexdigest()
    return {"schema_version": 1, "files": entries, "content": content}


@pytest.fixture
def make_release(tmp_path):
    """A function that makes files of `num_bytes` and returns (files, manifest)."""

    def make(num_bytes=3000, tag="a"):
        root = tmp_path / f"source-{tag}"
        (root / "transformer").mkdir(parents=True, exist_ok=True)
        files = {"README.md": root / "README.md", "transformer/weights": root / "transformer/weights"}
        files["README.md"].write_text(f"card {tag}")
        files["transformer/weights"].write_bytes(hashlib.sha256(tag.encode()).digest() * (num_bytes // 32))
        return files, manifest_of(files)

    return make


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def any_store(request, tmp_path):
    """An empty store of each kind."""
    from srpo_core.storage import open_store

    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/some/prefix")
