"""What happens to releases after they are published, as flows on a server."""

import pytest
from small_release import publish_small

from flows.release import clean, promote, pull, rollback, verify
from srpo_core.errors import GateError, StoreError
from srpo_core.release import resolve
from srpo_core.storage import open_store


@pytest.fixture
def store(tmp_path, monkeypatch, prefect):
    """The store of `SRPO_STORE` with three versions, and flows that run on the server."""
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    store = open_store()
    for number, passed in ((1, True), (2, True), (3, False)):
        publish_small(store, tmp_path, number, passed=passed)
    return store


def artifact(server, key):
    """The text of the newest artifact under `key`."""
    found = server.call("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    return found[0]["data"]


def test_promote_and_roll_back_are_flows_that_say_where_production_points(store, prefect):
    promote("tiny-1", reason="first")
    move = promote("tiny-2", reason="sharper")
    assert (move.alias, move.before, move.after) == ("tiny/production", "tiny-1", "tiny-2")
    assert artifact(prefect, "production") == "`tiny/production`: `tiny-1` → `tiny-2`"
    assert rollback(reason="too sharp").after == "tiny-1"
    assert resolve(store, "production") == "tiny-1"
    assert resolve(store, "previous") == "tiny-2"


def test_a_flow_that_would_promote_a_refused_release_fails_and_moves_nothing(store):
    with pytest.raises(GateError, match="the gate refused tiny-3: the subject is lost"):
        promote("tiny-3")
    assert store.aliases() == []


def test_the_flow_that_verifies_names_what_is_damaged_and_fails(store, prefect):
    assert verify() == {f"tiny-{number}": "4 files as published" for number in (1, 2, 3)}
    (store.local("tiny-2") / "transformer/weights").write_bytes(b"altered")
    with pytest.raises(StoreError, match=r"release tiny-2 .* is damaged: transformer/weights"):
        verify()
    table = artifact(prefect, "verify")
    assert "| `tiny-1` | 4 files as published |" in table
    assert "| `tiny-2` | release tiny-2" in table
    assert verify("tiny-1") == {"tiny-1": "4 files as published"}


def test_the_flow_that_verifies_everything_finds_an_alias_that_points_to_nothing(store, prefect):
    promote("tiny-1")
    store.remove("tiny-1")
    with pytest.raises(
        StoreError, match=r"the alias tiny/production .* points to tiny-1, which is not there"
    ):
        verify()
    table = artifact(prefect, "verify")
    assert "| alias | the alias tiny/production" in table
    assert "| `tiny-2` | 4 files as published |" in table


def test_the_flow_that_pulls_brings_one_format(store, tmp_path):
    paths = pull("tiny-1", to=str(tmp_path / "here"), format_name="BF16")
    assert sorted(path.rsplit("/", 1)[1] for path in paths) == [
        "config.json",
        "tiny-bf16.safetensors",
        "weights",
    ]


def test_the_flow_that_cleans_lists_first_and_removes_when_told(store):
    promote("tiny-1")
    assert clean(keep=1).versions == ("tiny-2",)
    assert store.versions() == ["tiny-1", "tiny-2", "tiny-3"]
    assert clean(keep=1, delete=True).versions == ("tiny-2",)
    assert store.versions() == ["tiny-1", "tiny-3"]
