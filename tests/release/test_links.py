"""Links to reports and grids open in a browser on any machine, if the store is served."""

import functools
import threading
import urllib.request
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from small_release import publish_small

from srpo_core.errors import ConfigError
from srpo_core.release.aliases import Move
from srpo_core.release.guard import guarded_store
from srpo_core.release.links import keep_report, release_links, store_url
from srpo_core.release.notices import move_message
from srpo_core.runtime.notifications import Kind
from srpo_core.storage import open_store

RUN = "20261130-120000-000001"


@contextmanager
def served(directory):
    """Serve a directory over HTTP on loopback, and yield its address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.delenv("SRPO_STORE_URL", raising=False)
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def report(tmp_path):
    (tmp_path / "my report.html").write_text("<h1>refused</h1>")
    (tmp_path / "image.png").write_bytes(b"PNG")
    return tmp_path / "my report.html", tmp_path / "image.png"


def test_the_links_of_a_run_and_of_a_release_are_read_over_http(store, report, tmp_path, monkeypatch):
    more = {"report.html": b"<h1>passed</h1>", "grid.png": b"GRID"}
    version = publish_small(store, tmp_path, 1, more=more)
    with served(store.uri) as address:
        monkeypatch.setenv("SRPO_STORE_URL", f" {address}/ ")
        links = keep_report(store, RUN, *report)
        assert links["report"] == f"{address}/reports/{RUN}/report.html"
        read = {name: urllib.request.urlopen(link).read() for name, link in links.items()}
        assert read == {"grid": b"PNG", "report": b"<h1>refused</h1>"}
        released = release_links(store, version)
        read = {name: urllib.request.urlopen(link).read() for name, link in released.items()}
        assert read == {"grid": b"GRID", "report": b"<h1>passed</h1>"}
        move = Move("tiny/production", None, version)
        message = move_message(Kind.PROMOTED, store, move, "it is better")
        assert message.body.splitlines()[1:] == [f"{name}: {link}" for name, link in released.items()]


def test_a_move_that_has_happened_is_told_without_links_if_they_cannot_be(
    store, tmp_path, monkeypatch, caplog
):
    version = publish_small(store, tmp_path, 1, more={"grid.png": b"GRID"})
    monkeypatch.setenv("SRPO_STORE_URL", "releases.example.org")
    message = move_message(Kind.PROMOTED, store, Move("tiny/production", None, version), "it is better")
    assert version in message.body
    assert "SRPO_STORE_URL=releases.example.org" in caplog.text


def test_an_address_that_is_none_is_refused_before_anything_moves(store, tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_STORE", store.uri)
    monkeypatch.setenv("SRPO_STORE_URL", "releases.example.org")
    with pytest.raises(ConfigError, match="SRPO_STORE_URL"):
        guarded_store()


def test_without_an_address_the_links_are_paths_in_the_store(store, report, tmp_path):
    links = keep_report(store, RUN, report[0], tmp_path / "missing.png")
    assert links == {"report": f"{store.uri}/reports/{RUN}/report.html"}
    version = publish_small(store, tmp_path, 1)
    assert release_links(store, version) == {}


@pytest.mark.s3
def test_links_in_a_bucket_name_the_objects_that_it_has(bucket, report, tmp_path, monkeypatch):
    import boto3

    monkeypatch.delenv("SRPO_STORE_URL", raising=False)
    store = open_store(f"s3://{bucket}/some/prefix")
    version = publish_small(store, tmp_path, 1, more={"grid.png": b"GRID"})
    links = {**keep_report(store, RUN, *report), "released": release_links(store, version)["grid"]}
    found = {
        name: boto3.client("s3").get_object(Bucket=bucket, Key=link.removeprefix(f"s3://{bucket}/"))
        for name, link in links.items()
    }
    assert found["report"]["ContentType"] == "text/html; charset=utf-8"
    assert found["grid"]["ContentType"] == "image/png"
    assert found["released"]["Body"].read() == b"GRID"
    monkeypatch.setenv("SRPO_STORE_URL", "https://example.org/p")
    assert keep_report(store, RUN, *report)["grid"] == f"https://example.org/p/reports/{RUN}/grid.png"


@pytest.mark.parametrize(
    "address",
    [
        "example.org", "ftp://example.org", "https://", "https://me:secret@example.org", "https://example.org/?a=b",
        "https://[::1", "https://example.org:0", "https://example.org/\nx", "file:///store",
    ],
)  # fmt: skip
def test_an_address_that_no_browser_opens_is_one_line_without_its_password(monkeypatch, address):
    monkeypatch.setenv("SRPO_STORE_URL", address)
    with pytest.raises(ConfigError) as caught:
        store_url()
    assert "secret" not in str(caught.value)


def test_a_blank_address_is_none(monkeypatch):
    monkeypatch.setenv("SRPO_STORE_URL", " ")
    assert store_url() is None
