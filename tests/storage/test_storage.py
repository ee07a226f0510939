"""Guarantees of every kind of store."""

import json
import threading
from pathlib import Path

import pytest
from stored_files import Files

from srpo_core.artifacts import home
from srpo_core.errors import ConfigError, StoreError
from srpo_core.runtime.shared_files import Location
from srpo_core.storage import DirectoryStore, S3Store, content_digest, listed, open_store
from srpo_core.storage.manifest import decode_manifest, decode_sealed, encode_sealed, version_key


def contents(store, version):
    return {name: b"".join(store.read(version, name)) for name in store.manifest(version)["files"]}


def test_a_published_version_is_listed_and_its_files_are_read_back(any_store, make_release):
    files, manifest = make_release()
    assert any_store.versions() == []
    assert any_store.publish("tiny-1", files, manifest) is True
    assert any_store.versions() == ["tiny-1"]
    assert any_store.manifest("tiny-1") == json.loads(encode_sealed(manifest))
    assert contents(any_store, "tiny-1") == {name: path.read_bytes() for name, path in files.items()}


def test_publishing_a_version_again_changes_nothing(any_store, make_release):
    files, manifest = make_release()
    any_store.publish("tiny-1", files, manifest | {"created_at": "first"})
    assert any_store.publish("tiny-1", files, manifest | {"created_at": "second"}) is False
    assert any_store.manifest("tiny-1")["created_at"] == "first"


def test_a_version_is_never_overwritten_with_other_content(any_store, make_release):
    files, manifest = make_release()
    any_store.publish("tiny-1", files, manifest)
    with pytest.raises(
        StoreError, match=r"version tiny-1 with other content \(first difference: README\.md\)"
    ):
        any_store.publish("tiny-1", *make_release(tag="b"))
    assert contents(any_store, "tiny-1")["README.md"] == b"card a"


def test_a_store_can_contain_several_versions(any_store, make_release):
    for tag in ("b", "a"):
        any_store.publish(f"tiny-{tag}", *make_release(tag=tag))
    assert any_store.versions() == ["tiny-a", "tiny-b"]
    assert contents(any_store, "tiny-a")["README.md"] == b"card a"


def test_an_unknown_version_gives_an_error_that_lists_the_known_ones(any_store, make_release):
    any_store.publish("tiny-1", *make_release())
    with pytest.raises(StoreError, match="no version 'tiny-2': known are tiny-1"):
        any_store.manifest("tiny-2")
    with pytest.raises(StoreError, match=r"has no file '\.\./secret'"):
        list(any_store.read("tiny-1", "../secret"))


def test_a_file_that_changes_during_publication_aborts_it(any_store, make_release):
    files, manifest = make_release()
    files["transformer/weights"].write_bytes(b"other bytes")
    with pytest.raises(StoreError, match="transformer/weights changed while it was published"):
        any_store.publish("tiny-1", files, manifest)
    assert any_store.versions() == []


def test_eight_concurrent_publishers_create_one_version(any_store, make_release, monkeypatch):
    """All publishers see that the version does not exist, and then start together."""
    files, manifest = make_release(200_000)
    barrier, outcomes = threading.Barrier(8), []
    kind, late = type(any_store), threading.local()
    honest = kind._is_published

    def together(self, version, manifest):
        there = honest(self, version, manifest)
        if not hasattr(late, "once"):
            late.once = True
            barrier.wait(timeout=60)
        return there

    monkeypatch.setattr(kind, "_is_published", together)

    def publish(who):
        store = open_store(any_store.uri)
        outcomes.append(store.publish("tiny-1", files, manifest | {"who": who}))

    threads = [threading.Thread(target=publish, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert contents(any_store, "tiny-1") == {name: path.read_bytes() for name, path in files.items()}


def test_a_removed_version_can_be_published_again(any_store, make_release):
    any_store.publish("tiny-1", *make_release())
    any_store.remove(["tiny-1"])
    any_store.remove(["tiny-1"])
    assert any_store.versions() == []
    assert any_store.publish("tiny-1", *make_release()) is True


def test_a_removal_is_undone_if_the_version_is_still_needed(any_store, make_release):
    files, manifest = make_release()
    any_store.publish("tiny-1", files, manifest)
    seen = []

    def needed():
        seen.append(any_store.versions())
        return {"tiny-1"}

    assert any_store.remove(["tiny-1"], needed=needed) == []
    assert seen == [[]], "the version is hidden when `needed` is called"
    assert contents(any_store, "tiny-1") == {name: path.read_bytes() for name, path in files.items()}

    def fail():
        raise StoreError("cannot be reached")

    with pytest.raises(StoreError, match="cannot be reached"):
        any_store.remove(["tiny-1"], needed=fail)
    assert any_store.versions() == ["tiny-1"]
    assert any_store.remove(["tiny-1"], needed=lambda: {"tiny-2", None}) == ["tiny-1"]
    assert any_store.versions() == []


def test_an_alias_moves_only_from_the_state_that_was_read(any_store):
    assert any_store.alias("tiny/candidate") == (None, None)
    assert any_store.write_alias("tiny/candidate", {"version": "a"}, None) is True
    value, token = any_store.alias("tiny/candidate")
    assert value == {"version": "a"}
    assert any_store.write_alias("tiny/candidate", {"version": "b"}, None) is False
    assert any_store.write_alias("tiny/candidate", {"version": "b"}, token) is True
    assert any_store.write_alias("tiny/candidate", {"version": "c"}, token) is False
    assert any_store.alias("tiny/candidate")[0] == {"version": "b"}
    assert any_store.aliases() == ["tiny/candidate"]


def test_one_of_eight_concurrent_writers_of_an_alias_succeeds(any_store):
    any_store.write_alias("tiny/candidate", {"version": "a"}, None)
    _, token = any_store.alias("tiny/candidate")
    barrier, outcomes = threading.Barrier(8), []

    def move(who):
        store = open_store(any_store.uri)
        barrier.wait()
        outcomes.append(store.write_alias("tiny/candidate", {"version": str(who)}, token))

    threads = [threading.Thread(target=move, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 129, "a b"])
def test_a_name_that_is_not_safe_as_a_path_is_refused(any_store, make_release, name):
    with pytest.raises(StoreError, match="is not a valid name"):
        any_store.publish(name, *make_release())
    for alias in (f"tiny/{name}", f"{name}/production"):
        with pytest.raises(StoreError, match="is not a valid name"):
            any_store.alias(alias)


def test_versions_and_aliases_are_stored_by_model(any_store, make_release):
    any_store.publish("flux-dev-1a", *make_release())
    any_store.write_alias("flux-dev/production", {"version": "flux-dev-1a"}, None)
    any_store.publish("tiny-1", *make_release())
    any_store.write_alias("tiny/production", {"version": "tiny-1"}, None)
    assert any_store.versions() == ["flux-dev-1a", "tiny-1"]
    assert any_store.aliases() == ["flux-dev/production", "tiny/production"]
    assert any_store.alias("flux-dev/production")[0] == {"version": "flux-dev-1a"}
    assert version_key("flux-dev-1a") == "models/flux-dev/versions/flux-dev-1a"


def test_a_version_or_an_alias_without_a_model_name_is_refused(any_store, make_release):
    with pytest.raises(StoreError, match="version 'tiny' names no model: write <model>-<digits>"):
        any_store.publish("tiny", *make_release())
    with pytest.raises(StoreError, match="alias 'production' names no model: write <model>/production"):
        any_store.alias("production")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "a/../../x"])
def test_a_manifest_that_names_files_outside_its_release_is_refused(name):
    data = encode_sealed({"files": {name: {"sha256": "", "bytes": 0}}, "content": ""})
    with pytest.raises(StoreError, match="outside its release"):
        decode_manifest(data, "here")


def test_a_damaged_manifest_gives_an_error():
    unfinished = (encode_sealed({}), encode_sealed({"files": {}}))
    for data in (b"{", b"[]", b"{}", b"[" * 100_000, *unfinished):
        with pytest.raises(StoreError, match="here is damaged"):
            decode_manifest(data, "here")


def test_a_manifest_with_any_flipped_bit_is_refused():
    data = encode_sealed({"files": {}, "content": "", "decision": {"passed": False}, "means": [0.1, 1e-3]})
    assert decode_manifest(data, "here")["means"] == [0.1, 1e-3]
    for place in range(8 * len(data)):
        altered = bytearray(data)
        altered[place // 8] ^= 1 << place % 8
        with pytest.raises(StoreError, match=r"^here (is damaged|was altered) .*restore it from a backup"):
            decode_manifest(bytes(altered), "here")


def test_a_reformatted_manifest_or_one_without_a_seal_is_refused():
    data = encode_sealed({"files": {}, "content": ""})
    for altered in (data + b"\n", data.replace(b"{}", b"{ }"), data.replace(b"{}", b'{}, "content": ""')):
        assert json.loads(altered) == json.loads(data)
        with pytest.raises(StoreError, match="here was altered after it was written"):
            decode_sealed(altered, "here")
    with pytest.raises(StoreError, match=r"here is damaged \(it has no seal\)"):
        decode_manifest(b'{"files": {}, "content": ""}', "here")


def test_sealing_is_idempotent_and_keys_become_strings():
    entry = {"sha256": "0" * 64, "bytes": 1}
    data = encode_sealed({"files": {10: entry, 9: entry}, "content": ""})
    assert decode_manifest(data, "here")["files"] == {"10": entry, "9": entry}
    assert encode_sealed(decode_manifest(data, "here")) == data


def test_the_uri_determines_the_kind_of_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SRPO_STORE", raising=False)
    assert open_store().uri == str(tmp_path / "store")
    monkeypatch.setenv("SRPO_STORE", "s3://bucket/a/b/")
    assert isinstance(open_store(), S3Store)
    assert open_store().uri == "s3://bucket/a/b"
    assert isinstance(open_store("elsewhere"), DirectoryStore)
    with pytest.raises(StoreError, match="unknown scheme gs://; known are a directory and s3://"):
        open_store("gs://bucket")
    with pytest.raises(StoreError, match="no bucket"):
        open_store("s3://")
    assert list(Path().iterdir()) == []


def test_the_content_digest_depends_on_names_and_hashes_but_not_on_order():
    files = {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    assert content_digest(files, ["a", "b"]) == content_digest(files, ["b", "a"])
    digests = {
        content_digest(files, ["a", "b"]),
        content_digest(files, ["a"]),
        content_digest({"a": {"sha256": "2"}, "b": {"sha256": "1"}}, ["a", "b"]),
    }
    assert len(digests) == 3


@pytest.mark.parametrize("secret", ["planted", "pl/ant+ed0123456789"])
def test_a_uri_with_credentials_is_refused_and_not_printed(monkeypatch, secret):
    monkeypatch.setenv("SRPO_STORE", f"s3://AKEY:{secret}@bucket/releases")
    with pytest.raises(StoreError, match="must not contain credentials") as caught:
        open_store()
    assert secret not in str(caught.value)
    assert "s3://***@bucket/releases" in str(caught.value)


def test_a_tilde_is_the_home_directory_for_the_store_the_state_and_the_shared_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SRPO_STORE", "SRPO_HOME", "SRPO_SHARED"):
        monkeypatch.setenv(name, f"~/{name.lower()}")
    assert open_store().uri == str(tmp_path / "srpo_store")
    assert home() == tmp_path / "srpo_home"
    assert str(Location.of("~/srpo_shared")) == str(tmp_path / "srpo_shared")
    with pytest.raises(ConfigError, match="~none-such/x names the home directory of an unknown user"):
        open_store("~none-such/x")


def test_many_known_versions_are_not_all_listed_in_an_error():
    names = [f"tiny-{number:02}" for number in range(30)]
    assert listed(names[:10]) == ", ".join(names[:10])
    assert listed(names) == f"{', '.join(names[:10])} and 20 more, see 'srpo releases'"
    assert listed([]) == "none"


ENTRY = {"sha256": "0" * 64, "bytes": 1}
WRONG_PARTS = {
    "NUL in a name": {"files": {"a\0b": ENTRY}},
    "control byte in a name": {"files": {"a\x1b[2J": ENTRY}},
    "empty name": {"files": {"": ENTRY}},
    "name that is a directory": {"files": {"a/": ENTRY}},
    "name with a dot": {"files": {"./a": ENTRY}},
    "backslash": {"files": {"..\\a": ENTRY}},
    "parent": {"files": {"a/../../b": ENTRY}},
    "absolute": {"files": {"/etc/passwd": ENTRY}},
    "entry that is no object": {"files": {"a": "x"}},
    "no digest": {"files": {"a": {"bytes": 1}}},
    "path as a digest": {"files": {"a": {"sha256": "../../x", "bytes": 1}}},
    "no length": {"files": {"a": {"sha256": "0" * 64}}},
    "negative length": {"files": {"a": {"sha256": "0" * 64, "bytes": -1}}},
    "length that is no number": {"files": {"a": {"sha256": "0" * 64, "bytes": True}}},
    "formats that are a list": {"formats": ["bf16"]},
    "format that is no list": {"formats": {"bf16": "a"}},
    "format of a file that is not there": {"formats": {"bf16": ["b"]}},
    "pipeline that is no name": {"pipeline": "a.b"},
    "decision that is a text": {"decision": "passed"},
}


@pytest.mark.parametrize("fault", WRONG_PARTS)
def test_a_wrong_part_of_a_manifest_is_one_line_when_it_is_read(fault):
    right = {"files": {"a": ENTRY}, "content": "", "formats": {"bf16": ["a"]}, "pipeline": "FluxPipeline"}
    assert decode_manifest(encode_sealed(right), "here")["formats"] == {"bf16": ["a"]}
    with pytest.raises(StoreError, match=r"^here (is damaged|names a file outside its release)") as caught:
        decode_manifest(encode_sealed(right | WRONG_PARTS[fault]), "here")
    assert str(caught.value).isprintable()


def test_a_report_of_a_run_is_kept_replaced_and_removed_beside_the_versions(
    any_store, make_release, tmp_path
):
    files = {name: tmp_path / name for name in ("report.html", "grid.png")}
    for number in (1, 2):
        for name, path in files.items():
            path.write_text(f"{name} {number}")
        any_store.reports.keep("20261130-120000-000001", files)
    any_store.reports.keep("other", {"report.html": files["report.html"]})
    any_store.publish("tiny-1", *make_release(1))
    stored = Files(any_store)
    assert {name: stored[name] for name in stored if name.startswith("reports/")} == {
        "reports/20261130-120000-000001/grid.png": b"grid.png 2",
        "reports/20261130-120000-000001/report.html": b"report.html 2",
        "reports/other/report.html": b"report.html 2",
    }
    assert any_store.versions() == ["tiny-1"]
    assert any_store.sweep(without=[], delete=True) == []
    for _ in range(2):
        any_store.reports.remove("20261130-120000-000001")
    assert [name for name in stored if name.startswith("reports/")] == ["reports/other/report.html"]
    with pytest.raises(StoreError, match="not a valid name"):
        any_store.reports.keep("../outside", files)
    with pytest.raises(StoreError, match="not a valid name"):
        any_store.reports.remove("..")
