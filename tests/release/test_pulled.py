"""Pull into a directory that has files: only what an earlier pull wrote is replaced."""

import json
from pathlib import Path

import pytest
from small_release import NAMES, publish_small

from srpo_core.errors import StoreError
from srpo_core.release import download
from srpo_core.release.download import pull
from srpo_core.storage import MANIFEST, open_store


@pytest.fixture
def two(tmp_path):
    """A store with two versions, and the directory to pull to."""
    store = open_store(str(tmp_path / "store"))
    for number in (1, 2):
        publish_small(store, tmp_path, number)
    return store, tmp_path / "here"


def contents(target):
    return {
        str(path.relative_to(target)): path.read_bytes()
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }


def pulled(store, version, target):
    files = contents(target)
    return all(files[name] == b"".join(store.read(version, name)) for name in NAMES)


@pytest.mark.parametrize("name", ["README.md", "transformer/config.json", MANIFEST, "README.md.part"])
def test_a_file_of_the_users_is_kept_and_nothing_is_written_unless_it_is_forced(two, name):
    store, target = two
    (target / name).parent.mkdir(parents=True)
    (target / name).write_text("mine")
    with pytest.raises(
        StoreError, match=rf"not from an earlier pull \({name}\), and nothing was changed.*--force"
    ):
        pull(store, "tiny-1", format_name=None, target=target)
    assert contents(target) == {name: b"mine"}
    pull(store, "tiny-1", format_name=None, target=target, force=True)
    assert pulled(store, "tiny-1", target)
    assert not list(target.rglob("*.part"))


def test_another_release_replaces_the_pulled_one_but_not_an_edited_file(two):
    store, target = two
    pull(store, "tiny-1", format_name=None, target=target)
    pull(store, "tiny-2", format_name=None, target=target)
    assert pulled(store, "tiny-2", target)
    (target / "README.md").write_text("edited")
    before = contents(target)
    for version in ("tiny-1", "tiny-2"):
        with pytest.raises(StoreError, match=r"not from an earlier pull \(README\.md\)"):
            pull(store, version, format_name=None, target=target)
    assert contents(target) == before


def test_a_killed_pull_is_repeated_and_replaced_without_force(two, monkeypatch):
    store, target = two
    pull(store, "tiny-1", format_name=None, target=target)
    honest, asked = download.download_file, []

    def killed(store, version, name, digest, path):
        if asked:
            path.with_name(path.name + ".part").write_bytes(b"begun")
            raise KeyboardInterrupt
        asked.append(name)
        honest(store, version, name, digest, path)

    monkeypatch.setattr(download, "download_file", killed)
    with pytest.raises(KeyboardInterrupt):
        pull(store, "tiny-2", format_name=None, target=target)
    monkeypatch.setattr(download, "download_file", honest)
    pull(store, "tiny-2", format_name=None, target=target)
    assert pulled(store, "tiny-2", target)
    pull(store, "tiny-1", format_name=None, target=target)
    assert pulled(store, "tiny-1", target)


def test_a_file_with_the_wanted_bytes_is_kept_whoever_wrote_it(two):
    store, target = two
    target.mkdir()
    (target / "README.md").write_bytes(b"".join(store.read("tiny-1", "README.md")))
    pull(store, "tiny-1", format_name=None, target=target)
    assert pulled(store, "tiny-1", target)


def test_a_directory_in_the_place_of_a_file_or_a_file_in_that_of_a_directory_is_named(two):
    store, target = two
    (target / "README.md").mkdir(parents=True)
    (target / "transformer").write_text("a file")
    names = r"\(README\.md, transformer/config\.json, transformer/weights\)"
    with pytest.raises(StoreError, match=names):
        pull(store, "tiny-1", format_name=None, target=target)


@pytest.mark.parametrize("text", ["{", "[]", '{"README.md": 3}'])
def test_a_damaged_record_of_earlier_pulls_gives_one_line(two, text):
    store, target = two
    target.mkdir()
    (target / ".pulled.json").write_text(text)
    with pytest.raises(StoreError, match=r"\.pulled\.json is damaged: delete it") as caught:
        pull(store, "tiny-1", format_name=None, target=target)
    assert "\n" not in str(caught.value)
    assert contents(target) == {".pulled.json": text.encode()}


def test_the_record_lists_the_digests_of_every_pull(two):
    store, target = two
    for version in ("tiny-1", "tiny-2", "tiny-1"):
        pull(store, version, format_name=None, target=target)
    record = json.loads(Path(target / ".pulled.json").read_text())
    assert record["README.md"] == sorted(
        store.manifest(version)["files"]["README.md"]["sha256"] for version in ("tiny-1", "tiny-2")
    )
    assert set(record) == {*NAMES, "decision.json", "proof.json", MANIFEST}
