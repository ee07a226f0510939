"""The commands that move aliases and remove releases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_release import publish_small

from srpo_core.cli.main import main
from srpo_core.cli.output import shortest
from srpo_core.release.references import resolve
from srpo_core.storage import open_store, version_key

ROOT = Path(__file__).parents[2]

COMMANDS = """
import sys
from srpo_core.cli.main import main
for line in sys.stdin.read().splitlines():
    sys.argv = ["srpo", *line.split()]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
print(sorted({"prefect", "torch", "ray", "apprise"} & {name.partition(".")[0] for name in sys.modules}))
"""


def test_promote_rollback_and_gc_run_in_their_own_process_and_load_no_server(tmp_path):
    store = open_store(str(tmp_path / "store"))
    for number in (1, 2, 3):
        publish_small(store, tmp_path, number)
    lines = "promote tiny-1\npromote tiny-2 --reason sharper\nrollback\nreject tiny-3 --why blurred\ngc --keep 0 --delete\n"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=lines,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SRPO_STORE": store.uri, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tiny/production  nothing → tiny-1",
        "tiny/production  tiny-1 → tiny-2",
        "tiny/production  tiny-2 → tiny-1",
        "tiny-3  rejected",
        "removed  tiny-3",
        "[]",
    ]
    assert resolve(store, "production") == "tiny-1"
    assert store.versions() == ["tiny-1", "tiny-2"]


@pytest.mark.parametrize("uri", ["s3://bucket/some/prefix/models/tiny/versions/tiny-1", "s3://bucket"])
def test_the_uri_of_a_release_is_printed_whole(uri):
    assert shortest(uri) == uri


def test_a_path_in_the_working_directory_is_printed_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shortest(tmp_path / "runs/x") == "runs/x"
    assert shortest("/elsewhere/x") == "/elsewhere/x"


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """The current store, with three versions of which the second has a cut manifest."""
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = open_store()
    for number in (1, 2, 3):
        publish_small(store, tmp_path, number)
    manifest = Path(store.uri) / version_key("tiny-2") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    return store


def lines_of(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["srpo", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return capsys.readouterr().out.splitlines()


def test_an_unreadable_manifest_is_marked_in_the_list_and_the_others_are_listed(damaged, capsys, monkeypatch):
    first, third, second = lines_of(capsys, monkeypatch, "releases")
    assert (first, third) == ("tiny-1  2026-01-01  unsigned", "tiny-3  2026-01-03  unsigned")
    assert second.startswith("tiny-2  unreadable: ")
    assert "tiny-2/manifest.json is damaged" in second


def test_gc_keeps_a_version_with_an_unreadable_manifest_and_removes_the_others(damaged, capsys, monkeypatch):
    lines = lines_of(capsys, monkeypatch, "gc", "--keep", "1", "--delete")
    assert lines[0] == "removed  tiny-1"
    assert lines[1].startswith("kept  tiny-2: ")
    assert damaged.versions() == ["tiny-2", "tiny-3"]


def test_the_list_is_also_written_as_a_page_that_says_what_cannot_be_read(damaged, capsys, monkeypatch):
    lines = lines_of(capsys, monkeypatch, "releases", "--html", "pages/releases.html")
    assert lines[-1] == "page  pages/releases.html"
    page = Path("pages/releases.html").read_text()
    assert [page.count(f'id="tiny-{number}"') for number in (1, 2, 3)] == [1, 1, 1]
    assert "1 version has a manifest that cannot be used" in page
