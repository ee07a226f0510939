"""The S3 store on a real server that checks signatures and digests: OpenStack Swift, which has no If-Match."""

from hashlib import sha256

import pytest
from small_release import publish_small
from stored_files import Files
from swift_server import s3_variables

from srpo_core.errors import StoreError
from srpo_core.release.aliases import promote, rollback
from srpo_core.release.download import pull
from srpo_core.release.gc import collect_garbage
from srpo_core.release.references import resolve
from srpo_core.release.verify import verify
from srpo_core.storage import S3Store, open_store, require_publishable

# nightly: Swift is installed from PyPI, which takes a minute and a network
pytestmark = [pytest.mark.nightly, pytest.mark.s3]


@pytest.fixture
def store(swift_endpoint, monkeypatch, request):
    """An empty store in a bucket of its own."""
    import boto3

    for name, value in s3_variables(swift_endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = f"releases-{abs(hash(request.node.nodeid)):x}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return open_store(f"s3://{bucket}/p")


def test_swift_is_refused_before_a_run_unless_the_settings_accept_it(store):
    """It has no If-Match, and of simultaneous writers under If-None-Match several win."""
    with pytest.raises(
        StoreError, match=r"does not honour conditional writes \(If-Match, If-None-Match of simul"
    ):
        require_publishable(store, accepted=False)
    require_publishable(store, accepted=True)


def test_a_wrong_secret_and_a_missing_bucket_are_named(store, monkeypatch):
    with pytest.raises(StoreError, match="there is no bucket none-such"):
        open_store("s3://none-such/p").versions()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"SignatureDoesNotMatch.*check AWS_SECRET_ACCESS_KEY"):
        open_store(store.uri).versions()


def test_releases_are_published_promoted_pulled_rolled_back_and_removed(store, tmp_path):
    require_publishable(store, accepted=True)
    versions = [publish_small(store, tmp_path, number) for number in (1, 2, 3)]
    promote(store, versions[0])
    promote(store, versions[1])
    assert rollback(store).after == versions[0]
    assert resolve(store, "previous") == versions[1]
    for path in pull(store, versions[2], format_name=None, target=tmp_path / "here"):
        assert path.read_bytes() == b"".join(
            store.read(versions[2], str(path.relative_to(tmp_path / "here")))
        )
    assert (
        b"".join(store.read(versions[2], "README.md", 100))
        == (tmp_path / "here/README.md").read_bytes()[100:]
    )
    assert collect_garbage(store, keep=0, delete=True).versions == (versions[2],)
    assert store.versions() == versions[:2]


def test_a_damaged_object_is_repaired_and_large_files_go_in_parts(store, tmp_path, make_release):
    store = S3Store(store.uri, part_bytes=5 << 20)
    files, manifest = make_release(11 << 20)
    require_publishable(store, accepted=True)
    assert store.publish("tiny-1", files, manifest) is True
    stored = Files(store)
    for entry in manifest["files"].values():
        stored[f"objects/{entry['sha256']}"] = b"damaged"

    def digests():
        whole = {name: b"".join(store.read("tiny-1", name)) for name in manifest["files"]}
        return {name: sha256(content).hexdigest() for name, content in whole.items()}

    with pytest.raises(StoreError, match="is damaged"):
        verify(store, "tiny-1")
    assert store.publish("tiny-1", files, manifest) is False
    assert digests() == {name: entry["sha256"] for name, entry in manifest["files"].items()}
