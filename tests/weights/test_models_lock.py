import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save
from wrong_files import PAGE, POINTER

from srpo_core.errors import ArtifactError, ConfigError, SrpoError
from srpo_core.weights.models_lock import Locked, fetch, missing_files, read_lock

REVISION = "a" * 40
FILES = {"config.json": b"{}", "model.safetensors": save({"weights": np.arange(100.0)})}


class Hub(BaseHTTPRequestHandler):
    """Serves what hf_hub_download requests: sizes, entity tags and bytes of files at a revision."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        _, _, name = self.path.partition(f"/resolve/{REVISION}/")
        content = FILES.get(name)
        self.send_response(200 if content is not None else 404)
        content = content or b""
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.chdir(tmp_path)
    yield endpoint
    server.shutdown()


def lock(**files):
    entry = {"repo": "some/model", "revision": REVISION, "files": files, "architecture": {}}
    Path("models.lock").write_text(yaml.safe_dump({"models/x": entry}))


def sha(name):
    return hashlib.sha256(FILES[name]).hexdigest()


def test_missing_files_are_downloaded_and_existing_files_are_only_checked(hub):
    lock(**{"config.json": None, "model.safetensors": sha("model.safetensors")})
    first = list(fetch("models/x"))
    assert Path("models/x/model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert first == [
        f"models/x/config.json: fetched, sha256 {sha('config.json')}, now in models.lock",
        "models/x/model.safetensors: fetched, as locked",
    ]
    assert {path.name for path in Path("models/x").iterdir()} == set(FILES), "nothing that tells the hour"
    assert list(fetch("models/x")) == [
        "models/x/config.json: here already, as locked",
        "models/x/model.safetensors: here already, as locked",
    ]
    Path("models/x/config.json").write_text("{ }")
    with pytest.raises(ArtifactError, match=r"models/x/config\.json does not have the digest"):
        list(fetch("models/x"))


def test_a_new_digest_is_written_to_its_entry_and_nothing_else_changes(hub):
    written = (
        "# why\nmodels/a:\n  files:\n    config.json: null\n  repo: r\n  revision: v\n  architecture: {}\n"
        f"\nmodels/x:   # its own\n  repo: some/model\n  revision: {REVISION}\n  files:\n"
        "    config.json: null\n    model.safetensors: null\n  architecture: {}\n"
    )
    Path("models.lock").write_text(written)
    list(fetch("models/x"))
    head, own = written.split("models/x:")
    for name in FILES:
        own = own.replace(f"{name}: null", f"{name}: {sha(name)}")
    assert Path("models.lock").read_text() == f"{head}models/x:{own}"


@pytest.mark.parametrize("form", ["pickle", "safetensors"])
def test_weights_with_a_digest_other_than_the_locked_one_are_not_loaded(tmp_path, monkeypatch, form):
    import torch
    from safetensors.torch import save_file

    from srpo_core.scorers.weights import read_pickle, read_safetensors

    monkeypatch.chdir(tmp_path)
    path = Path("models/x/w")
    path.parent.mkdir(parents=True)
    tensors = {"a": torch.ones(2)}
    torch.save(tensors, path) if form == "pickle" else save_file(tensors, path)
    read = read_pickle if form == "pickle" else read_safetensors
    lock(w=hashlib.sha256(path.read_bytes()).hexdigest())
    assert read(path)["a"].tolist() == [1, 1]
    lock(w="0" * 64)
    with pytest.raises(
        ArtifactError, match=r"models/x/w does not have the digest of models\.lock: remove it"
    ):
        read(path)
    lock(w=None)
    assert read(path)["a"].tolist() == [1, 1]


def test_a_downloaded_file_with_another_digest_is_refused(hub):
    lock(**{"config.json": "0" * 64})
    with pytest.raises(
        ArtifactError, match=r"models/x/config\.json does not have the digest of models\.lock"
    ):
        list(fetch("models/x"))


def test_a_page_in_place_of_a_download_is_removed_and_its_digest_is_not_locked(hub, monkeypatch):
    monkeypatch.setitem(FILES, "model.safetensors", PAGE)
    lock(**{"model.safetensors": None})
    with pytest.raises(ArtifactError, match=r"this is an HTML page: .*; 'srpo fetch' stopped: run it again"):
        list(fetch("models/x"))
    assert not Path("models/x/model.safetensors").exists()
    assert read_lock()["models/x"].files == {"model.safetensors": None}


def test_a_pointer_that_was_here_already_is_reported_and_kept(hub):
    lock(**{"model.safetensors": sha("model.safetensors")})
    Path("models/x").mkdir(parents=True)
    Path("models/x/model.safetensors").write_bytes(POINTER)
    with pytest.raises(ArtifactError, match=r"this is a Git LFS pointer: .* or remove it and run it again"):
        list(fetch("models/x"))
    assert Path("models/x/model.safetensors").read_bytes() == POINTER


def test_a_file_that_the_hub_lacks_raises_a_one_line_error(hub):
    lock(**{"nothing.bin": None})
    with pytest.raises(
        SrpoError, match=r"some/model/nothing\.bin cannot be fetched from .*: check the network"
    ):
        list(fetch("models/x"))


def test_an_unknown_entry_raises_an_error_that_lists_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock()
    with pytest.raises(ConfigError, match=r"unknown entry of models\.lock 'models/y': known are models/x"):
        list(fetch("models/y"))


def test_missing_files_of_an_entry_are_listed(tmp_path):
    (tmp_path / "a").write_text("")
    entry = Locked("some/model", REVISION, {"a": None, "b/c": None}, {})
    assert missing_files(str(tmp_path), entry) == ["b/c"]


def test_every_locked_revision_and_digest_has_its_full_length():
    for entry in read_lock(Path(__file__).resolve().parents[2] / "models.lock").values():
        assert len(entry.revision) == 40
        assert all(digest is None or len(digest) == 64 for digest in entry.files.values())


def test_a_malformed_lock_raises_a_one_line_error(tmp_path):
    path = tmp_path / "models.lock"
    path.write_text("models/x: {repo: some/model}")
    with pytest.raises(ConfigError, match=r"models\.lock cannot be read: .*missing"):
        read_lock(path)


@pytest.mark.parametrize("key", ["files", "architecture"])
def test_an_entry_without_files_or_with_a_list_of_them_is_named(tmp_path, key):
    entry = {"repo": "some/model", "revision": REVISION, "files": {}, "architecture": {}}
    for value in (None, ["config.json"]):
        (tmp_path / "models.lock").write_text(yaml.safe_dump({"models/x": {**entry, key: value}}))
        with pytest.raises(ConfigError, match=r"models.lock: models/x: write NAME: SHA-256, or NAME: null"):
            read_lock(tmp_path / "models.lock")
