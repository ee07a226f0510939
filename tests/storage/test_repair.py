"""Damaged files of a store are found by their length, and repaired by publishing again, in both kinds of store."""

import pytest
from stored_files import Files

from srpo_core.errors import StoreError
from srpo_core.storage import DamagedFileError, S3Store, open_store, version_key

NAME = "transformer/weights"


class Damage:
    """Reads and changes the stored bytes of a file without the store's own code."""

    def __init__(self, store, version, manifest):
        self.files, self.keys = Files(store), {}
        for name, entry in manifest["files"].items():
            own = f"{version_key(version)}/{name}" in list(self.files)
            self.keys[name] = f"{version_key(version)}/{name}" if own else f"objects/{entry['sha256']}"

    def alter(self, name):
        data = self.files[self.keys[name]]
        self.files[self.keys[name]] = bytes([data[0] ^ 1]) + data[1:]

    def cut(self, name):
        self.files[self.keys[name]] = self.files[self.keys[name]][:-7]

    def lengthen(self, name):
        self.files[self.keys[name]] = self.files[self.keys[name]] + b"more"

    def lose(self, name):
        del self.files[self.keys[name]]


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request, tmp_path):
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/p")


def assert_whole(store, version, files):
    for name, path in files.items():
        assert b"".join(store.read(version, name)) == path.read_bytes()


@pytest.mark.parametrize("kind", ["alter", "cut", "lengthen", "lose"])
def test_publishing_again_repairs_every_damaged_file(store, make_release, kind):
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    damage = Damage(store, "tiny-1", manifest)
    for name in files:
        getattr(damage, kind)(name)
    assert store.publish("tiny-1", files, manifest) is False
    assert_whole(store, "tiny-1", files)


@pytest.mark.parametrize("kind", ["cut", "lengthen"])
def test_a_file_of_another_length_is_refused_before_its_first_byte(store, make_release, kind):
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    getattr(Damage(store, "tiny-1", manifest), kind)(NAME)
    found = {"cut": 2976 - 7, "lengthen": 2976 + 4}[kind]
    for start in (0, 100, 2975):
        with pytest.raises(DamagedFileError, match=rf"has {found} bytes instead of 2976: publish it again"):
            next(store.read("tiny-1", NAME, start))


def test_a_damaged_file_that_is_not_at_hand_is_named_after_all_others_are_repaired(store, make_release):
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    damage = Damage(store, "tiny-1", manifest)
    damage.alter("README.md")
    damage.alter(NAME)
    other = {**manifest["files"], "README.md": {"sha256": "0" * 64, "bytes": 5}}
    with pytest.raises(
        StoreError, match=r"lost or damaged README\.md of tiny-1, and your file has other bytes"
    ):
        store.publish("tiny-1", files, {**manifest, "files": other})
    assert b"".join(store.read("tiny-1", NAME)) == files[NAME].read_bytes()


def test_intact_files_are_not_written_again(store, make_release):
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    Damage(store, "tiny-1", manifest).alter("README.md")
    files[NAME].write_bytes(b"would be refused if it were read")
    assert store.publish("tiny-1", files, manifest) is False
    assert_whole(store, "tiny-1", {"README.md": files["README.md"]})


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["alter", "cut", "lose"])
def test_a_bad_object_does_not_block_another_release_that_shares_it_and_both_are_whole_then(
    bucket, make_release, kind
):
    store = open_store(f"s3://{bucket}/p")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    getattr(Damage(store, "tiny-1", manifest), kind)(NAME)
    assert store.publish("tiny-2", files, {**manifest, "content": "another"}) is True
    for version in ("tiny-1", "tiny-2"):
        assert_whole(store, version, files)


@pytest.mark.s3
def test_a_bad_object_in_parts_is_replaced(bucket, make_release):
    store = S3Store(f"s3://{bucket}/p", part_bytes=5 << 20)
    files, manifest = make_release(11 << 20)
    store.publish("tiny-1", files, manifest)
    Damage(store, "tiny-1", manifest).alter(NAME)
    assert store.publish("tiny-1", files, manifest) is False
    assert_whole(store, "tiny-1", files)


@pytest.mark.parametrize("kind", ["alter", "cut", "lengthen"])
def test_publishing_again_rewrites_a_damaged_manifest_and_the_files_that_differ(
    store, make_release, kind, caplog
):
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    before = store.manifest("tiny-1")
    damage = Damage(store, "tiny-1", manifest)
    damage.keys["manifest.json"] = f"{version_key('tiny-1')}/manifest.json"
    getattr(damage, kind)("manifest.json")
    damage.alter(NAME)
    with pytest.raises(StoreError, match="restore it from a backup, or publish the version again"):
        store.manifest("tiny-1")
    assert store.publish("tiny-1", files, manifest) is False
    assert store.manifest("tiny-1") == before
    assert_whole(store, "tiny-1", files)
    assert "manifest.json of tiny-1 in" in caplog.text
    assert "was damaged and is written again: sign it again" in caplog.text
    assert store.versions() == ["tiny-1"]
