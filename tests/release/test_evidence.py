"""A manifest must say what the files of its release say."""

import hashlib
import json

import pytest
from stored_files import Files

from srpo_core.errors import StoreError
from srpo_core.release.aliases import promote, rollback
from srpo_core.release.download import pull
from srpo_core.release.verify import verify
from srpo_core.storage.manifest import encode_sealed


def forge(store, version, change):
    """Change a manifest and seal it again, as somebody who can write to the store may do."""
    files = Files(store)
    (name,) = (name for name in files if name.endswith(f"/{version}/manifest.json"))
    manifest = json.loads(files[name])
    change(manifest)
    files[name] = encode_sealed(manifest)


def acts(store, version, target):
    return (
        lambda: verify(store, version),
        lambda: promote(store, version),
        lambda: pull(store, version, format_name=None, target=target),
    )


CHANGES = [
    (
        lambda manifest: manifest["decision"].update(passed=True, verdict="passed"),
        r"decision in its manifest differs from its decision\.json",
    ),
    (
        lambda manifest: manifest["proof"]["refused"].clear(),
        r"proof in its manifest differs from its proof\.json",
    ),
    (
        lambda manifest: (manifest["decision"].update(passed=True), manifest["files"].pop("decision.json")),
        r"its manifest names no decision\.json",
    ),
    (lambda manifest: manifest.update(version="tiny-2"), "its manifest is of version 'tiny-2'"),
]


@pytest.mark.parametrize(("change", "fault"), CHANGES)
def test_a_manifest_that_contradicts_its_files_is_neither_verified_nor_promoted_nor_pulled(
    store, publish, tmp_path, change, fault
):
    version = publish(1, passed=False)
    forge(store, version, change)
    if "names no" in fault and store.local(version):
        (store.local(version) / "decision.json").unlink()
    for act in acts(store, version, tmp_path / "here"):
        with pytest.raises(StoreError, match=rf"release tiny-1 in .* contradicts itself \({fault}") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert store.aliases() == []
    assert not (tmp_path / "here").exists()


def test_production_is_not_rolled_back_to_a_release_that_contradicts_itself(store, publish):
    publish(1)
    promote(store, "tiny-1")
    promote(store, publish(2))
    forge(store, "tiny-1", lambda manifest: manifest["decision"].update(reason="the best of all"))
    with pytest.raises(StoreError, match="contradicts itself"):
        rollback(store)


def test_a_release_under_the_name_of_another_dvc_lock_is_refused(release, damaged):
    store, directory = damaged
    version = directory.name
    verify(store, version)
    (directory / "dvc.lock").write_bytes(b"stages: {}\n")
    digest = hashlib.sha256(b"stages: {}\n").hexdigest()
    forge(
        store,
        version,
        lambda manifest: manifest["files"].update({"dvc.lock": {"sha256": digest, "bytes": 11}}),
    )
    with pytest.raises(StoreError, match=r"its name is not the digest of its dvc\.lock"):
        verify(store, version)


def test_a_file_that_the_manifest_does_not_name_is_reported(store, publish):
    version = publish(1)
    verify(store, version)
    files = Files(store)
    if files.root:
        (files.root / f"models/tiny/versions/{version}/vae").mkdir()
    files[f"models/tiny/versions/{version}/vae/pickle.bin"] = b"not checked by anybody"
    with pytest.raises(
        StoreError, match=r"has files that its manifest does not name: .*vae/pickle\.bin; remove"
    ):
        verify(store, version)
