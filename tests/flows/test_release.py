"""Flows on published releases, on a Prefect server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_release import publish_small

from flows.release import gc, promote, pull, releases, rollback, show, verify
from srpo_core.errors import GateError, StoreError
from srpo_core.release.references import resolve
from srpo_core.storage import open_store

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.pipeline


@pytest.fixture
def store(tmp_path, monkeypatch, prefect):
    """Publish three versions to the store of `SRPO_STORE`; flows run on the server."""
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = open_store()
    for number, passed in ((1, True), (2, True), (3, False)):
        publish_small(store, tmp_path, number, passed=passed)
    return store


def artifact(server, key):
    """Return the text of the newest artifact with this key."""
    found = server.call("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return found[0]["data"]


def test_the_flows_releases_and_show_write_artifacts(store, prefect):
    promote("tiny-1", reason="first")
    assert releases() == ["tiny-1", "tiny-2", "tiny-3"]
    table = artifact(prefect, "releases").splitlines()
    assert table[2:] == [
        "| `tiny-1` | 2026-01-01 | production | bf16 | 0.1 | unsigned |",
        "| `tiny-2` | 2026-01-02 |  | bf16 | 0.1 | unsigned |",
        "| `tiny-3` | 2026-01-03 |  | bf16 | 0.1 | unsigned |",
    ]
    lines = show("production")
    assert lines[0] == "version  tiny-1"
    assert "verdict  passed: every rule holds." in lines
    assert lines[-1].startswith("alias    tiny/production")
    assert lines[-1].endswith(": first")
    assert artifact(prefect, "release") == "\n".join(["```", *lines, "```"])
    with pytest.raises(StoreError, match="has no release 'candidate'"):
        show()


def test_the_flows_promote_and_rollback_move_production_write_an_artifact_and_notify(
    store, prefect, receiver, monkeypatch
):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    promote("tiny-1", reason="first")
    move = promote("tiny-2", reason="sharper")
    assert (move.alias, move.before, move.after) == ("tiny/production", "tiny-1", "tiny-2")
    assert artifact(prefect, "production") == "`tiny/production`: `tiny-1` → `tiny-2`"
    assert rollback(reason="too sharp").after == "tiny-1"
    assert resolve(store, "production") == "tiny-1"
    assert resolve(store, "previous") == "tiny-2"
    assert receiver.titles(3) == [
        "SRPO promoted: tiny, tiny-1",
        "SRPO promoted: tiny, tiny-2",
        "SRPO rolled back: tiny, tiny-1",
    ]
    assert receiver.body("SRPO promoted: tiny, tiny-2")[0].endswith(": sharper")


def test_the_flow_promote_fails_for_a_refused_release_and_moves_nothing(store):
    with pytest.raises(GateError, match="the gate refused tiny-3: the subject is lost"):
        promote("tiny-3")
    assert store.aliases() == []


def test_the_flow_verify_names_damaged_files_fails_and_notifies(store, prefect, receiver, monkeypatch):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    assert verify() == {f"tiny-{number}": "6 files are intact, unsigned" for number in (1, 2, 3)}
    (store.local("tiny-2") / "transformer/weights").write_bytes(b"altered")
    with pytest.raises(StoreError, match=r"release tiny-2 .* is damaged: transformer/weights"):
        verify()
    table = artifact(prefect, "verify")
    assert "| `tiny-1` | 6 files are intact, unsigned |" in table
    assert "| `tiny-2` | release tiny-2" in table
    assert verify("tiny-1") == {"tiny-1": "6 files are intact, unsigned"}
    (title,) = receiver.titles(1)
    assert title.startswith(f"SRPO store damaged: {store.uri}, run ")
    assert "is damaged: transformer/weights" in receiver.body(title)[0]


def test_the_flow_verify_finds_an_alias_of_a_missing_version(store, prefect):
    promote("tiny-1")
    store.remove(["tiny-1"])
    with pytest.raises(
        StoreError, match=r"the alias tiny/production .* points to tiny-1, which does not exist"
    ):
        verify()
    table = artifact(prefect, "verify")
    assert "| alias | the alias tiny/production" in table
    assert "| `tiny-2` | 6 files are intact, unsigned |" in table


def test_the_flow_pull_downloads_one_format(store, tmp_path):
    paths = pull("tiny-1", to=str(tmp_path / "here"), format_name="BF16")
    assert sorted(path.rsplit("/", 1)[1] for path in paths) == [
        "config.json",
        "tiny-bf16.safetensors",
        "weights",
    ]


def test_the_flow_gc_only_lists_without_delete(store):
    promote("tiny-1")
    assert gc(keep=1).versions == ("tiny-2",)
    assert store.versions() == ["tiny-1", "tiny-2", "tiny-3"]
    assert gc(keep=1, delete=True).versions == ("tiny-2",)
    assert store.versions() == ["tiny-1", "tiny-3"]


@pytest.fixture
def srpo(prefect_server, tmp_path):
    """Return a function that runs the command line in an empty directory and returns its output."""

    def run(*arguments, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "srpo_core", *arguments],
            cwd=tmp_path,
            env={**prefect_server.environment, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        if code:
            (line,) = (line for line in done.stderr.splitlines() if line.startswith("srpo: error: "))
            return line
        return done.stdout

    return run


def test_the_commands_list_show_promote_roll_back_pull_verify_and_remove_releases(store, srpo, tmp_path):
    # The server started before SRPO_STORE was set, so the commands use store/ in their directory.
    assert Path(store.uri) == tmp_path / "store"
    listed = [line.split()[0] for line in srpo("releases").splitlines()]
    assert listed == ["tiny-1", "tiny-2", "tiny-3"]
    shown = srpo("show", "tiny-3")
    assert "verdict  refused: the subject is lost.\n" in shown
    assert re.search(
        r"^format   bf16 +0\.1 MB  output error 0\.004, 97% of the gain kept$", shown, re.MULTILINE
    )
    assert re.search(r"^left out q4_0 +12\.0 dB to bf16, at least 20$", shown, re.MULTILINE)
    assert "the gate refused tiny-3: the subject is lost." in srpo("promote", "tiny-3", code=3)
    assert srpo("promote", "tiny-1") == "tiny/production  nothing → tiny-1\n"
    assert srpo("promote", "tiny-2", "--reason", "sharper") == "tiny/production  tiny-1 → tiny-2\n"
    assert srpo("rollback", "--reason", "too sharp") == "tiny/production  tiny-2 → tiny-1\n"
    moves = srpo("show", "production")
    assert re.search(
        r"^alias    tiny/production +\S+  tiny-2 → tiny-1  by .+: too sharp$", moves, re.MULTILINE
    )
    pulled = [Path(line) for line in srpo("pull", "production", "--format", "BF16", "--to", "here").split()]
    assert [path.name for path in pulled] == ["tiny-bf16.safetensors", "weights", "config.json"]
    for path in pulled:
        name = str(path.relative_to("here"))
        assert (tmp_path / path).read_bytes() == b"".join(store.read("tiny-1", name))
    state = "6 files are intact, unsigned"
    assert srpo("verify", "--all").splitlines() == [f"tiny-{number}: {state}" for number in (1, 2, 3)]
    assert srpo("gc", "--keep", "0") == "would remove  tiny-3\nnext     repeat it with --delete\n"
    assert store.versions() == ["tiny-1", "tiny-2", "tiny-3"]
    assert srpo("gc", "--keep", "0", "--delete") == "removed  tiny-3\n"
    assert store.versions() == ["tiny-1", "tiny-2"]
    (store.local("tiny-2") / "README.md").write_text("altered")
    assert re.search(
        r"release tiny-2 in \S+ is damaged: README\.md; restore", srpo("verify", "--all", code=1)
    )


@pytest.mark.s3
@pytest.mark.parametrize(("argument", "header"), [("IfNoneMatch", "If-None-Match"), ("IfMatch", "If-Match")])
def test_a_bucket_that_ignores_conditions_moves_production_only_if_the_settings_accept_it(
    prefect, bucket, tmp_path, monkeypatch, argument, header
):
    from botocore.client import BaseClient

    monkeypatch.setenv("SRPO_STORE", f"s3://{bucket}/p")
    monkeypatch.chdir(tmp_path)
    store = open_store()
    for number in (1, 2):
        publish_small(store, tmp_path, number)
    promote("tiny-1")
    promote("tiny-2")
    honest = BaseClient._make_api_call

    def forgetful(self, operation, given):
        return honest(self, operation, {name: value for name, value in given.items() if name != argument})

    monkeypatch.setattr(BaseClient, "_make_api_call", forgetful)
    for act in (lambda: promote("tiny-1"), rollback):
        with pytest.raises(StoreError, match=rf"does not honour conditional writes \({header}\)"):
            act()
    assert resolve(store, "production") == "tiny-2"
    settings = (ROOT / "params.yaml").read_text()
    accepted = settings.replace("unconditional_store: false", "unconditional_store: true")
    (tmp_path / "params.yaml").write_text(accepted)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    assert rollback().after == "tiny-1"
