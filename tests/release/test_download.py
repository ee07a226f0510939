"""Pull and fetch: formats, interrupted downloads, full disks, damaged files."""

import multiprocessing
import resource
import select
import signal
import socket
import threading
from pathlib import Path

import pytest
from small_release import publish_small
from stored_files import Files

from srpo_core.artifacts import sha256
from srpo_core.errors import ArtifactError, ConfigError, StoreError
from srpo_core.release.download import fetch, pull
from srpo_core.release.generate import generate
from srpo_core.release.summary import describe
from srpo_core.release.verify import verify
from srpo_core.storage import open_store


def test_pull_downloads_one_format_and_its_config_only(store, publish, tmp_path):
    version = publish(1)
    target = tmp_path / "here"
    pull(store, version, format_name="BF16", target=target)
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    expected = {"tiny-bf16.safetensors", "transformer/weights", "transformer/config.json", "manifest.json"}
    assert names == expected | {".pulled.json"}
    with pytest.raises(ConfigError, match="has no format 'q4': known are bf16"):
        pull(store, version, format_name="q4", target=target)


def test_a_pulled_manifest_equals_the_stored_one_byte_for_byte(store, publish, tmp_path):
    version = publish(1)
    pull(store, version, format_name=None, target=tmp_path / "here")
    files = Files(store)
    (name,) = (name for name in files if name.endswith("manifest.json"))
    assert (tmp_path / "here/manifest.json").read_bytes() == files[name]


def test_an_interrupted_pull_is_resumed_and_complete_files_are_kept(store, publish, tmp_path, monkeypatch):
    version = publish(1)
    target = tmp_path / "here"
    pull(store, version, format_name=None, target=target)
    whole = (target / "transformer/weights").read_bytes()
    (target / "transformer/weights").unlink()
    (target / "transformer/weights.part").write_bytes(whole[:5000])
    asked, honest = [], type(store).read

    def read(self, version, name, start=0):
        asked.append((name, start))
        return honest(self, version, name, start)

    monkeypatch.setattr(type(store), "read", read)
    pull(store, version, format_name=None, target=target)
    evidence = [
        ("decision.json", 0),
        ("proof.json", 0),
    ]  # compared with the manifest before anything is copied
    assert asked == [*evidence, ("transformer/weights", 5000)]
    assert (target / "transformer/weights").read_bytes() == whole
    (target / "transformer/weights").unlink()
    (target / "transformer/weights.part").write_bytes(b"no beginning of it")
    pull(store, version, format_name=None, target=target)
    assert (target / "transformer/weights").read_bytes() == whole
    assert not list(target.rglob("*.part"))


class CuttingProxy:
    """A proxy that closes each connection after `num_bytes` of an object, or never if it is None.

    once: later connections bring nothing of an object; spared: number of objects that come first and are not cut off.
    """

    def __init__(self, endpoint, num_bytes):
        host, port = endpoint.removeprefix("http://").split(":")
        self.upstream, self.num_bytes, self.once = (host, int(port)), num_bytes, True
        self.spared = 2  # decision.json and proof.json, which are compared with the manifest
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.forward, args=(client,), daemon=True).start()

    def forward(self, client):
        left = None
        with client, socket.create_connection(self.upstream) as upstream:
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client and data.startswith(b"GET") and b"/objects/" in data.split(b"\r\n")[0]:
                        if self.spared:
                            self.spared, left = self.spared - 1, None
                        else:
                            left, begun = self.num_bytes, False
                            self.num_bytes = 0 if left and self.once else left
                    if ready is upstream and left is not None and not begun:
                        left, begun = left + data.index(b"\r\n\r\n") + 4, True  # its header is not counted
                    if ready is upstream and left is not None:
                        data, left = data[:left], left - len(data)
                    (upstream if ready is client else client).sendall(data)
                    if left is not None and begun and left <= 0:
                        return


@pytest.fixture
def cut_off(bucket, s3_environment, tmp_path, monkeypatch):
    """A store whose release has four files of 3.4 to 4.6 MB, behind a proxy that cuts each of them off after 2.5 MB."""
    publish_small(open_store(f"s3://{bucket}/p"), tmp_path, 1, repeats=180_000)
    proxy = CuttingProxy(s3_environment, 2_500_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield open_store(f"s3://{bucket}/p"), proxy
    proxy.server.close()


@pytest.mark.s3
def test_an_interrupted_pull_leaves_a_partial_file_and_resumes_from_it(cut_off, tmp_path, monkeypatch):
    store, proxy = cut_off
    target = tmp_path / "here"
    with pytest.raises(StoreError, match=r"was cut off in the middle of a file .*try again") as caught:
        pull(store, "tiny-1", format_name=None, target=target)
    assert "\n" not in str(caught.value)
    (partial_file,) = (path for path in target.rglob("*") if path.is_file() and path.name != ".pulled.json")
    assert partial_file.name == "README.md.part"
    size = partial_file.stat().st_size
    assert 2_000_000 < size <= 2_500_000
    proxy.num_bytes = None
    asked, honest = [], type(store).read

    def read(self, version, name, start=0):
        asked.append((name, start))
        return honest(self, version, name, start)

    monkeypatch.setattr(type(store), "read", read)
    paths = pull(store, "tiny-1", format_name=None, target=target)
    assert asked[:3] == [("decision.json", 0), ("proof.json", 0), ("README.md", size)]
    assert [start for _, start in asked[3:]] == [0, 0, 0, 0, 0]
    entries = store.manifest("tiny-1")["files"]
    assert {str(path.relative_to(target)): sha256(path) for path in paths} == {
        name: entry["sha256"] for name, entry in entries.items()
    }


@pytest.mark.s3
def test_a_pull_whose_connections_are_all_cut_off_goes_on_where_each_ended(cut_off, tmp_path):
    store, proxy = cut_off
    proxy.once = False
    for path in pull(store, "tiny-1", format_name=None, target=tmp_path / "here"):
        name = str(path.relative_to(tmp_path / "here"))
        assert sha256(path) == store.manifest("tiny-1")["files"][name]["sha256"]


@pytest.mark.s3
def test_an_interrupted_read_is_not_reported_as_damage_and_not_cached(cut_off, tmp_path):
    store, proxy = cut_off
    for act in (lambda: verify(store, "tiny-1"), lambda: fetch(store, "tiny-1", cache=tmp_path / "cache")):
        with pytest.raises(StoreError, match="was cut off in the middle of a file") as caught:
            act()
        assert "is damaged" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".fetch")] == []
    proxy.num_bytes = None
    assert verify(store, "tiny-1")["version"] == "tiny-1"
    assert (
        sha256(fetch(store, "tiny-1", cache=tmp_path / "cache") / "README.md")
        == (store.manifest("tiny-1")["files"]["README.md"]["sha256"])
    )


def _pull_with_a_file_size_limit(uri, target, outcomes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        outcomes.put(pull(open_store(uri), "tiny-1", format_name=None, target=target))
    except StoreError as error:
        outcomes.put(str(error))


def test_a_pull_to_a_full_disk_fails_and_can_be_resumed(tmp_path):
    """A limit on the file size interrupts a write, as a full disk does."""
    store = open_store(str(tmp_path / "store"))
    publish_small(store, tmp_path, 1)
    target = tmp_path / "here"
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    process = context.Process(target=_pull_with_a_file_size_limit, args=(store.uri, target, outcomes))
    process.start()
    message = outcomes.get(timeout=60)
    process.join()
    assert f"release tiny-1 cannot be written to {target} (" in message
    assert "File too large): free space or fix the permissions, then" in message
    assert "\n" not in message
    assert {path.name for path in target.rglob("*") if path.is_file()} == {".pulled.json", "README.md.part"}
    for path in pull(store, "tiny-1", format_name=None, target=target):
        assert path.read_bytes() == b"".join(store.read("tiny-1", str(path.relative_to(target))))
    assert not list(target.rglob("*.part"))


def test_a_pulled_file_with_another_sha256_is_refused(store, publish, tmp_path, monkeypatch):
    version, honest = publish(1), type(store).read

    def read(self, version, name, start=0):
        if name.endswith(".json"):
            return honest(self, version, name, start)
        return iter([b"other bytes"])

    monkeypatch.setattr(type(store), "read", read)
    with pytest.raises(StoreError, match="does not have its SHA-256: run 'srpo verify'"):
        pull(store, version, format_name=None, target=tmp_path / "here")
    kept = {path.name for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert kept <= {".pulled.json", "decision.json", "proof.json", "config.json"}


def test_fetch_returns_the_directory_of_a_local_store(release, tmp_path):
    store, published = release
    assert fetch(store, "candidate", cache=tmp_path / "cache") == Path(published.uri)
    assert not (tmp_path / "cache").exists()


@pytest.mark.s3
def test_fetch_downloads_a_release_from_a_bucket_once_and_it_generates_the_same_image(
    release, bucket, tmp_path, monkeypatch
):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    files = {name: Path(published.uri) / name for name in manifest["files"]}
    store.publish(published.version, files, manifest)
    directory = fetch(store, published.version, cache=tmp_path / "cache")
    for name, path in files.items():
        assert (directory / name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [directory.name]
    here = generate(local, published.version, "tiger face", output=tmp_path / "here.png")
    there = generate(
        store, published.version, "tiger face", output=tmp_path / "there.png", cache=tmp_path / "cache"
    )
    assert here.read_bytes() == there.read_bytes()
    monkeypatch.setattr(type(store), "read", lambda *_: pytest.fail("downloaded a second time"))
    assert fetch(store, published.version, cache=tmp_path / "cache") == directory


@pytest.mark.s3
def test_a_damaged_download_is_refused_and_removed(release, bucket, tmp_path, monkeypatch):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    store.publish(
        published.version, {name: Path(published.uri) / name for name in manifest["files"]}, manifest
    )
    monkeypatch.setattr(type(store), "read", lambda *_: iter([b"other bytes"]))
    with pytest.raises(StoreError, match="does not have its SHA-256"):
        fetch(store, published.version, cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [".lock"]


@pytest.mark.s3
def test_a_killed_fetch_resumes_after_the_complete_files(release, bucket, tmp_path, monkeypatch):
    local, published = release
    store = open_store(f"s3://{bucket}")
    manifest = local.manifest(published.version)
    files = {name: Path(published.uri) / name for name in manifest["files"]}
    store.publish(published.version, files, manifest)
    honest, asked = type(store).read, []

    def killed(self, version, name, start=0):
        asked.append(name)
        if len(asked) == 3:
            raise KeyboardInterrupt
        yield from honest(self, version, name, start)

    monkeypatch.setattr(type(store), "read", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch(store, published.version, cache=tmp_path / "cache")
    directory = fetch(store, published.version, cache=tmp_path / "cache")
    assert sorted(asked) == sorted([*files, asked[2]]), "only the interrupted file is read twice"
    for name, path in files.items():
        assert (directory / name).read_bytes() == path.read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [directory.name]


@pytest.mark.parametrize("link", ["transformer", "transformer/weights", "transformer/weights.part"])
def test_pull_follows_no_symbolic_link_below_its_target(store, publish, tmp_path, link):
    version = publish(1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_bytes(b"mine")
    place = tmp_path / "here" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(outside if link == "transformer" else outside / "weights")
    with pytest.raises(StoreError, match="is a symbolic link, which would lead transformer/"):
        pull(store, version, format_name=None, target=tmp_path / "here")
    assert [path.name for path in outside.iterdir()] == ["weights"]
    assert (outside / "weights").read_bytes() == b"mine"


def test_the_target_itself_may_be_a_link(store, publish, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "disk")
    pull(store, publish(1), format_name=None, target=tmp_path / "here")
    assert (tmp_path / "disk/transformer/weights").is_file()


@pytest.mark.parametrize("part", ["formats", "version", "created_at"])
def test_a_manifest_without_a_part_that_pull_and_show_read_is_one_line(
    store, publish, tmp_path, monkeypatch, part
):
    version = publish(1)
    whole = store.manifest(version)
    monkeypatch.setattr(
        type(store), "manifest", lambda self, name: {k: v for k, v in whole.items() if k != part}
    )
    for call in (
        lambda: pull(store, version, format_name="bf16", target=tmp_path / "here"),
        lambda: list(describe(store, version)),
        lambda: generate(store, version, "owl", output=tmp_path / "owl.png"),
    ):
        with pytest.raises(StoreError, match=f"the manifest of tiny-1 in .* has no {part}"):
            call()


def test_generate_with_an_unknown_pipeline_class_is_one_line(store, publish, tmp_path, monkeypatch):
    version = publish(1)
    for name in ("NoSuchPipeline", "logging", "FluxTransformer2DModel"):
        manifest = store.manifest(version) | {"pipeline": name, "call": {}}
        with monkeypatch.context() as patch:
            patch.setattr(type(store), "manifest", lambda self, version, found=manifest: found)
            with pytest.raises(
                ArtifactError, match=f"names the pipeline '{name}', which diffusers .* does not have"
            ):
                generate(store, version, "owl", output=tmp_path / "owl.png", cache=tmp_path / "cache")
