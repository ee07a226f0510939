"""The list of releases."""

import pytest
from stored_files import Files

from srpo_core.errors import StoreError
from srpo_core.release.aliases import move_alias
from srpo_core.release.gc import collect_garbage
from srpo_core.release.references import resolve
from srpo_core.release.summary import describe, list_releases
from srpo_core.storage import open_store


def test_the_list_has_versions_aliases_formats_and_sizes(release):
    store, published = release
    (line,) = list_releases(store)
    assert line.version == published.version
    assert line.aliases == ("candidate",)
    assert line.formats == ("bf16", "fp8_e4m3fn", "q8_0")
    assert 15e6 < line.num_bytes < 40e6
    assert not [line for line in describe(store, "candidate") if line.startswith("cost")], (
        "its manifest has none"
    )


def test_an_empty_store_has_no_releases(tmp_path):
    store = open_store(str(tmp_path / "store"))
    assert list_releases(store) == []
    with pytest.raises(StoreError, match="has no release 'candidate': known are none"):
        resolve(store, "candidate")


def test_an_unreadable_manifest_or_alias_is_reported_and_everything_else_is_listed(store, publish, caplog):
    versions = [publish(number) for number in (1, 2, 3)]
    for version in versions:
        move_alias(store, f"tiny/to-{version}", version, why="a test")
    files = Files(store)
    (manifest,) = (name for name in files if name.endswith("tiny-2/manifest.json"))
    (alias,) = (name for name in files if name.endswith("to-tiny-3.json"))
    files[manifest] = files[manifest].replace(b"every rule", b"each  rule")
    files[alias] = files[alias][:-30]
    first, third, second = list_releases(store)
    assert (first.version, first.aliases, first.fault) == ("tiny-1", ("to-tiny-1",), None)
    assert (third.version, third.aliases, third.fault) == ("tiny-3", (), None)
    assert (second.version, second.aliases) == ("tiny-2", ("to-tiny-2",))
    assert "manifest.json was altered after it was written" in second.fault
    assert caplog.text.count("to-tiny-3.json is damaged") == 1
    assert [line for line in describe(store, "tiny-1") if line.startswith("alias")]
    with pytest.raises(StoreError, match=r"to-tiny-3\.json is damaged"):
        collect_garbage(store, keep=0, delete=True)
    assert store.versions() == versions


def test_a_manifest_of_another_program_is_reported(tmp_path, caplog):
    store = open_store(str(tmp_path / "store"))
    store.publish("tiny-1", {}, {"files": {}, "content": "", "formats": {}})
    (line,) = list_releases(store)
    assert line.fault == "its manifest is not one of srpo (KeyError: 'created_at'): restore it from a backup"
