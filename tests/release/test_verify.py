"""Verify: altered or missing files and aliases are found, in a directory and in a bucket."""

import pytest
from stored_files import Files

from srpo_core.errors import StoreError
from srpo_core.release import aliases
from srpo_core.release.aliases import promote
from srpo_core.release.download import pull
from srpo_core.release.summary import describe
from srpo_core.release.verify import verify, verify_aliases
from srpo_core.storage import PAGE, DirectoryStore


def faults_of(store):
    """Return all faults that `srpo verify --all` finds."""
    faults = [str(fault) for fault in verify_aliases(store)]
    for version in store.versions():
        try:
            verify(store, version)
        except StoreError as error:
            faults.append(str(error))
    return faults


def test_one_flipped_bit_in_a_stored_file_is_found_and_the_file_is_named(store, publish):
    version = publish(1)
    promote(store, version)
    files = Files(store)
    names = [name for name in files if name != PAGE]
    assert len(names) == 8  # six files, their manifest, the alias
    assert faults_of(store) == []
    digests = {entry["sha256"]: name for name, entry in store.manifest(version)["files"].items()}
    for name in names:
        data = files[name]
        files[name] = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
        (fault,) = faults_of(store)
        last = name.rpartition("/")[2]
        assert digests.get(last, last) in fault
        assert "\n" not in fault
        files[name] = data
        assert faults_of(store) == []


def test_a_missing_file_is_found(store, publish):
    version = publish(1)
    promote(store, version)
    files = Files(store)
    digests = {entry["sha256"]: name for name, entry in store.manifest(version)["files"].items()}
    for name in [one for one in files if one != PAGE]:
        data, last = files[name], name.rpartition("/")[2]
        del files[name]
        if last == "production.json":
            assert store.aliases() == []
        elif last == "manifest.json":
            (fault,) = faults_of(store)
            assert "the alias tiny/production" in fault
            assert "points to tiny-1, which does not exist" in fault
        else:
            (fault,) = faults_of(store)
            assert f"is damaged: {digests.get(last, name.partition('/tiny-1/')[2])}; restore" in fault
        files[name] = data
    assert faults_of(store) == []


def test_a_release_with_an_altered_decision_cannot_be_promoted_or_read(store, publish, tmp_path):
    version = publish(1, passed=False)
    files = Files(store)
    (name,) = (name for name in files if name.endswith("manifest.json"))
    files[name] = files[name].replace(b'"passed": false', b'"passed": true')
    for act in (
        lambda: promote(store, version),
        lambda: verify(store, version),
        lambda: list(describe(store, version)),
        lambda: pull(store, version, format_name=None, target=tmp_path / "here"),
    ):
        with pytest.raises(StoreError, match=r"manifest\.json was altered after it was written") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert store.aliases() == []
    assert not (tmp_path / "here").exists()
    store.remove([version])
    assert store.versions() == []


def test_verify_names_every_damaged_file(release, damaged):
    store, published = release
    assert verify(store, "candidate")["version"] == published.version
    copy, directory = damaged
    weights = directory / "transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (directory / "report.html").unlink()
    with pytest.raises(
        StoreError,
        match=r"is damaged: report\.html, transformer/diffusion_pytorch_model\.safetensors; restore",
    ):
        verify(copy, "candidate")


def test_a_failing_store_is_not_reported_as_a_damaged_release(release, monkeypatch):
    store, _ = release

    def unreachable(self, version, name, start=0):
        raise StoreError("cannot be reached")
        yield

    monkeypatch.setattr(DirectoryStore, "read", unreachable)
    with pytest.raises(StoreError, match="cannot be reached"):
        verify(store, "candidate")


def test_verifying_or_promoting_a_version_does_not_list_all_versions(store, publish, monkeypatch):
    """To list ten thousand versions for each of them is quadratic; the page, which lists all, is written afterwards."""
    versions = [publish(number) for number in range(1, 4)]
    promote(store, versions[0])
    monkeypatch.setattr(type(store), "versions", lambda _: pytest.fail("all versions are listed"))
    monkeypatch.setattr(aliases, "rebuild_page", lambda _: None)
    for version in versions:
        assert verify(store, version)["version"] == version
    assert promote(store, versions[1]).before == versions[0]
    assert verify(store, "previous")["version"] == versions[0]
    assert verify_aliases(store) == []


def test_the_manifest_of_a_version_is_read_once_for_all_of_its_files(store, publish, monkeypatch):
    kind, honest, asked = type(store), type(store)._manifest, []
    versions = [publish(number) for number in (1, 2)]

    def counting(self, version):
        asked.append(version)
        return honest(self, version)

    monkeypatch.setattr(kind, "_manifest", counting)
    for version in versions:
        verify(store, version)
    assert asked == versions
