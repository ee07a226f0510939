"""The S3 store against moto's server on loopback."""

import hashlib
import socket
import threading
from base64 import b64encode
from datetime import UTC, datetime
from io import BytesIO
from itertools import pairwise

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from stored_files import make_older

from srpo_core.artifacts import sha256
from srpo_core.errors import StoreError
from srpo_core.release.gc import collect_garbage
from srpo_core.storage import S3Store, open_store, require_conditions
from srpo_core.storage.manifest import encode_sealed
from srpo_core.storage.s3.bucket import Bucket

pytestmark = pytest.mark.s3


def keys(bucket):
    return sorted(
        entry["Key"] for entry in boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", ())
    )


def test_files_are_stored_by_digest_and_the_manifest_by_version(bucket, make_release):
    files, manifest = make_release()
    open_store(f"s3://{bucket}/p").publish("tiny-1", files, manifest)
    digests = {f"p/objects/{entry['sha256']}" for entry in manifest["files"].values()}
    assert set(keys(bucket)) == digests | {"p/models/tiny/versions/tiny-1/manifest.json"}


def test_two_versions_share_their_common_files(bucket, make_release):
    store = open_store(f"s3://{bucket}")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    before = keys(bucket)
    store.publish("tiny-2", files, manifest | {"content": "another"})
    assert set(keys(bucket)) - set(before) == {"models/tiny/versions/tiny-2/manifest.json"}


def test_a_large_file_is_sent_in_parts_which_are_counted(bucket, make_release, reports):
    five = 5 << 20  # the minimum size of a part
    store = S3Store(f"s3://{bucket}", part_bytes=five)
    files, manifest = make_release(2 * five + 3200)
    assert store.publish("tiny-1", files, manifest) is True
    data = b"".join(store.read("tiny-1", "transformer/weights"))
    assert data == files["transformer/weights"].read_bytes()
    head = boto3.client("s3").head_object(
        Bucket=bucket, Key=f"objects/{manifest['files']['transformer/weights']['sha256']}"
    )
    assert head["ETag"].endswith('-3"')
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    assert {all_bytes for _, _, all_bytes in reports} == {total}
    parts = [later - sooner for (_, sooner, _), (_, later, _) in pairwise(reports)]
    assert sorted(parts)[-3:] == [3200, five, five]
    assert reports[-1] == ("upload files", total, total)


def test_a_large_file_changed_during_upload_leaves_no_parts(bucket, make_release):
    five = 5 << 20
    files, manifest = make_release(five + 3200)
    files["transformer/weights"].write_bytes(bytes(five + 10))
    with pytest.raises(StoreError, match="changed while it was published"):
        S3Store(f"s3://{bucket}", part_bytes=five).publish("tiny-1", files, manifest)
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)


def test_a_version_without_a_manifest_does_not_exist_and_can_be_completed(bucket, make_release, monkeypatch):
    store = open_store(f"s3://{bucket}")
    files, manifest = make_release()
    with monkeypatch.context() as patch:

        def killed(self, key, data, **condition):
            if key.endswith("manifest.json"):
                raise KeyboardInterrupt
            return honest(self, key, data, **condition)

        honest = Bucket.put_if
        patch.setattr(Bucket, "put_if", killed)
        with pytest.raises(KeyboardInterrupt):
            store.publish("tiny-1", files, manifest)
    assert any(key.startswith("objects/") for key in keys(bucket))
    assert store.versions() == []
    with pytest.raises(StoreError, match="no version 'tiny-1': known are none"):
        store.manifest("tiny-1")
    assert store.publish("tiny-1", files, manifest) is True


def test_a_missing_bucket_is_named(s3_environment, make_release):
    store = open_store("s3://no-such-bucket/p")
    for act in (store.versions, store.aliases, lambda: store.publish("tiny-1", *make_release())):
        with pytest.raises(
            StoreError, match="there is no bucket no-such-bucket; create it or set SRPO_STORE"
        ):
            act()


def test_missing_credentials_are_named(s3_environment, monkeypatch, make_release):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="needs credentials: set AWS_ACCESS_KEY_ID"):
        open_store("s3://bucket").publish("tiny-1", *make_release())


def test_an_endpoint_that_closes_connections_is_tried_ten_times(s3_environment, monkeypatch, make_release):
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(1)
                connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(StoreError, match="cannot be reached in 10 attempts") as caught:
            open_store("s3://bucket").publish("tiny-1", *make_release())
        server.shutdown(socket.SHUT_RDWR)
    assert len(connections) == 10
    assert "\n" not in str(caught.value)


def test_an_unreachable_endpoint_is_named(s3_environment, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StoreError, match=f"cannot be reached .*127.0.0.1:{port}.*check AWS_ENDPOINT_URL"):
        open_store("s3://bucket").versions()


def test_an_endpoint_that_is_not_a_url_is_named(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(StoreError, match=r"Invalid endpoint.*check AWS_ENDPOINT_URL"):
        open_store("s3://bucket").versions()


@pytest.mark.parametrize(("arguments", "header"), [("IfNoneMatch", "If-None-Match"), ("IfMatch", "If-Match")])
def test_a_store_that_ignores_a_condition_is_detected(bucket, monkeypatch, arguments, header):
    from botocore.client import BaseClient

    honest = BaseClient._make_api_call
    assert open_store(f"s3://{bucket}").ignored_conditions() == []

    def forgetful(self, operation, given):
        given.pop(arguments, None)
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", forgetful)
    assert open_store(f"s3://{bucket}").ignored_conditions() == [header]


def test_a_store_without_conditional_writes_is_used_only_if_the_settings_accept_it(
    bucket, make_release, monkeypatch
):
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    honest = BaseClient._make_api_call

    def without_conditions(self, operation, given):
        if given.keys() & {"IfMatch", "IfNoneMatch"}:
            raise ClientError({"Error": {"Code": "NotImplemented", "Message": "no"}}, operation)
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", without_conditions)
    store = open_store(f"s3://{bucket}")
    with pytest.raises(
        StoreError,
        match=r"does not honour conditional writes \(If-None-Match, If-Match\).*unconditional_store",
    ):
        require_conditions(store, accepted=False)
    require_conditions(store, accepted=True)
    assert store.publish("tiny-1", *make_release())
    assert store.write_alias("tiny/production", {"version": "tiny-1"}, None)
    _, token = store.alias("tiny/production")
    assert store.write_alias("tiny/production", {"version": "tiny-2"}, token)


def test_an_object_damaged_by_the_store_is_found_by_reading_it_back(bucket, make_release, monkeypatch):
    """moto accepts any checksum, so every object is read back before a manifest names it."""
    from botocore.client import BaseClient

    honest = BaseClient._make_api_call

    def careless(self, operation, given):
        if operation == "PutObject" and given["Key"].startswith("objects/"):
            given = {**given, "Body": given["Body"][:-1] + b"?"}
            given.pop("ChecksumSHA256", None)
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", careless)
    store = open_store(f"s3://{bucket}")
    with pytest.raises(StoreError, match="changed while it was published"):
        store.publish("tiny-1", *make_release())
    assert store.versions() == []
    assert not [key for key in keys(bucket) if key.startswith("objects/")]


def verify_only_md5(monkeypatch, *, damage=False):
    """Make the server refuse bytes that do not have their MD5, and ignore SHA-256; return the list of requests.

    damage: change the last byte of every upload to objects/.
    """
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    honest, asked = BaseClient._make_api_call, []

    def strict(self, operation, given):
        asked.append((operation, given.get("Key", "")))
        if operation in ("PutObject", "UploadPart"):
            given = {name: value for name, value in given.items() if name != "ChecksumSHA256"}
            if damage and "objects/" in given["Key"]:
                given["Body"] = given["Body"][:-1] + b"?"
            md5 = b64encode(hashlib.md5(given["Body"]).digest()).decode()
            if given.get("ContentMD5", md5) != md5:
                raise ClientError({"Error": {"Code": "BadDigest", "Message": "no"}}, operation)
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", strict)
    return asked


def test_nothing_is_read_back_from_a_store_that_verifies_md5(bucket, make_release, monkeypatch):
    asked = verify_only_md5(monkeypatch)
    files, manifest = make_release()
    assert open_store(f"s3://{bucket}").publish("tiny-1", files, manifest) is True
    assert len([key for operation, key in asked if operation == "PutObject" and "objects/" in key]) == 2
    assert [key for operation, key in asked if operation == "GetObject" and "objects/" in key] == []


@pytest.mark.parametrize("part_bytes", [1 << 20, 1000], ids=["whole", "in parts"])
def test_a_store_that_verifies_md5_refuses_damaged_uploads(bucket, make_release, monkeypatch, part_bytes):
    verify_only_md5(monkeypatch, damage=True)
    store = S3Store(f"s3://{bucket}", part_bytes=part_bytes)
    with pytest.raises(StoreError, match=r"received other bytes than were sent \(BadDigest\)") as caught:
        store.publish("tiny-1", *make_release())
    assert "\n" not in str(caught.value)
    assert store.versions() == []
    assert not [key for key in keys(bucket) if key.startswith("objects/")]


def test_an_interrupted_upload_is_resumed_without_sending_finished_parts_again(
    bucket, make_release, monkeypatch
):
    from botocore.client import BaseClient

    five = 5 << 20
    files, manifest = make_release(4 * five)
    honest, sent = BaseClient._make_api_call, []

    def cut_off(self, operation, given):
        if operation == "UploadPart":
            if given["PartNumber"] > 2 and not sent.count("again"):
                raise EndpointConnectionError(endpoint_url="http://gone")
            sent.append(given["PartNumber"])
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", cut_off)
    with pytest.raises(StoreError, match="cannot be reached"):
        S3Store(f"s3://{bucket}", part_bytes=five).publish("tiny-1", files, manifest)
    assert sorted(sent) == [1, 2]
    sent.append("again")
    store = S3Store(f"s3://{bucket}", part_bytes=five)
    assert store.publish("tiny-1", files, manifest) is True
    assert sorted(sent[3:]) == [3, 4]
    assert b"".join(store.read("tiny-1", "transformer/weights")) == files["transformer/weights"].read_bytes()
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=bucket)


def test_a_part_with_other_content_is_sent_again(bucket, make_release):
    five = 5 << 20
    files, manifest = make_release(2 * five)
    key = f"objects/{manifest['files']['transformer/weights']['sha256']}"
    client = boto3.client("s3")
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(five))
    store = S3Store(f"s3://{bucket}", part_bytes=five)
    assert store.publish("tiny-1", files, manifest) is True
    assert b"".join(store.read("tiny-1", "transformer/weights")) == files["transformer/weights"].read_bytes()


def test_a_sweep_deletes_old_leftovers_and_no_file_of_a_version(bucket, make_release, monkeypatch):
    from datetime import timedelta

    store = open_store(f"s3://{bucket}")
    store.publish("tiny-a", *make_release(tag="a"))
    store.publish("tiny-b", *make_release(tag="b"))
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="objects/orphan", Body=b"x")
    assert store.sweep(without=["tiny-b"], delete=True) == []  # nothing is a day old
    client.create_multipart_upload(Bucket=bucket, Key="objects/half")  # moto dates all uploads to 2010
    monkeypatch.setattr("srpo_core.storage.s3.sweep.STALE", timedelta(seconds=-5))
    left = store.sweep(without=["tiny-b"], delete=False)
    assert "objects/orphan" in left
    assert "objects/half (unfinished)" in left
    assert len(left) == 4
    assert store.sweep(without=["tiny-b"], delete=True) == left
    assert store.sweep(without=["tiny-b"], delete=True) == []
    assert b"".join(store.read("tiny-a", "README.md")) == b"card a"


def test_a_sweep_removes_no_object_while_a_manifest_cannot_be_read(bucket, make_release, caplog):
    store = open_store(f"s3://{bucket}/p")
    files, manifest = make_release()
    for version in ("tiny-1", "tiny-2"):
        store.publish(version, files, manifest)
    store.remove(["tiny-2"])
    key = "p/models/tiny/versions/tiny-1/manifest.json"
    data = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data[:-9])
    make_older(bucket, days=2)
    assert store.sweep(without=(), delete=True) == []
    assert "no object is removed while a manifest cannot be read" in caplog.text
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)
    assert b"".join(store.read("tiny-1", "README.md")) == b"card a"


def test_a_removed_version_that_is_published_again_meanwhile_keeps_its_objects(
    bucket, make_release, monkeypatch
):
    store = open_store(f"s3://{bucket}/p")
    files, manifest = make_release()
    entry = {"version": "tiny-1", "created_at": "2026", "formats": {}, "decision": {}}
    store.publish("tiny-1", files, manifest | entry)
    honest = S3Store.sweep

    def publish_then_sweep(self, **options):
        make_older(bucket, days=2)
        self._bucket.put("models/tiny/versions/tiny-1/manifest.json", encode_sealed(manifest | entry))
        return honest(self, **options)

    monkeypatch.setattr(S3Store, "sweep", publish_then_sweep)
    assert collect_garbage(store, keep=0, delete=True).leftovers == ()
    assert b"".join(store.read("tiny-1", "README.md")) == b"card a"


def test_a_file_can_be_read_from_any_byte(bucket, make_release):
    store = open_store(f"s3://{bucket}")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    whole = files["transformer/weights"].read_bytes()
    for start in (0, 1, 1500, len(whole) - 1, len(whole), len(whole) + 5):
        assert b"".join(store.read("tiny-1", "transformer/weights", start)) == whole[start:]


def test_a_write_is_retried_if_s3_requests_it(bucket, monkeypatch):
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    honest, refusals = BaseClient._make_api_call, [1, 1]

    def busy(self, operation, arguments):
        if operation == "PutObject" and refusals:
            refusals.pop()
            raise ClientError({"Error": {"Code": "ConditionalRequestConflict"}}, operation)
        return honest(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", busy)
    assert open_store(f"s3://{bucket}").write_alias("tiny/candidate", {"version": "a"}, None) is True
    assert refusals == []


def test_a_refused_credential_is_named(bucket, monkeypatch):
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    def denied(self, operation, arguments):
        raise ClientError({"Error": {"Code": "SignatureDoesNotMatch", "Message": "no"}}, operation)

    monkeypatch.setattr(BaseClient, "_make_api_call", denied)
    with pytest.raises(StoreError, match=r"refuses these credentials \(SignatureDoesNotMatch\)"):
        open_store(f"s3://{bucket}").versions()


def test_a_lost_object_is_named(bucket, make_release):
    store = open_store(f"s3://{bucket}")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    digest = manifest["files"]["README.md"]["sha256"]
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"objects/{digest}")
    with pytest.raises(StoreError, match=r"has lost README\.md of tiny-1"):
        list(store.read("tiny-1", "README.md"))


def test_one_of_eight_publishers_that_write_the_manifest_together_succeeds(bucket, make_release, monkeypatch):
    files, manifest = make_release()
    barrier, outcomes, honest = threading.Barrier(8), [], Bucket.put_if

    def together(self, key, data, **condition):
        if key.endswith("manifest.json"):
            barrier.wait(timeout=60)
        return honest(self, key, data, **condition)

    monkeypatch.setattr(Bucket, "put_if", together)

    def publish(who):
        outcomes.append(open_store(f"s3://{bucket}").publish("tiny-1", files, manifest | {"who": who}))

    threads = [threading.Thread(target=publish, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_a_write_with_a_lost_response_succeeds(bucket, make_release, monkeypatch):
    """The network drops the answer, botocore writes again, and the store answers that the object exists."""
    from botocore.httpsession import URLLib3Session

    honest, lost = URLLib3Session.send, []

    def dropping(self, request):
        answer = honest(self, request)
        where = request.url.partition("?")[0]
        if request.method == "PUT" and where.endswith(".json") and where not in lost:
            lost.append(where)
            raise EndpointConnectionError(endpoint_url=where)
        return answer

    monkeypatch.setattr(URLLib3Session, "send", dropping)
    store = open_store(f"s3://{bucket}")
    assert store.publish("tiny-1", *make_release()) is True
    assert store.write_alias("tiny/production", {"version": "tiny-1"}, None) is True
    assert [where.rpartition("/")[2] for where in lost] == ["manifest.json", "production.json"]
    assert store.write_alias("tiny/production", {"version": "tiny-2"}, None) is False


def test_publishing_again_restores_lost_files(bucket, make_release):
    store = open_store(f"s3://{bucket}")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    for name in files:
        digest = manifest["files"][name]["sha256"]
        boto3.client("s3").delete_object(Bucket=bucket, Key=f"objects/{digest}")
    assert store.publish("tiny-1", files, manifest) is False
    assert {name: b"".join(store.read("tiny-1", name)) for name in files} == {
        name: path.read_bytes() for name, path in files.items()
    }
    card = manifest["files"]["README.md"]["sha256"]
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"objects/{card}")
    files["README.md"].write_text("another card")
    entry = {"sha256": sha256(files["README.md"]), "bytes": 12}
    changed = manifest | {"files": manifest["files"] | {"README.md": entry}}
    with pytest.raises(
        StoreError, match=r"has lost or damaged README\.md of tiny-1, and your file has other bytes"
    ):
        store.publish("tiny-1", files, changed)


def test_a_damaged_object_of_a_killed_publisher_is_replaced(bucket, make_release):
    files, manifest = make_release()
    for entry in manifest["files"].values():
        boto3.client("s3").put_object(Bucket=bucket, Key=f"objects/{entry['sha256']}", Body=b"damaged")
    store = open_store(f"s3://{bucket}")
    assert store.publish("tiny-1", files, manifest) is True
    for name, path in files.items():
        assert b"".join(store.read("tiny-1", name)) == path.read_bytes()


def test_a_sweep_keeps_a_file_that_is_published_meanwhile(bucket, make_release, monkeypatch):
    """The sweep has listed the object as an orphan; then a publisher finds it and does not send it again."""
    from botocore.client import BaseClient

    store = open_store(f"s3://{bucket}/p")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    store.remove(["tiny-1"])
    make_older(bucket, days=2)
    assert len(store.sweep(without=(), delete=False)) == 2
    honest, published = BaseClient._make_api_call, []

    def publishing_meanwhile(self, operation, given):
        if operation == "ListMultipartUploads" and not published:
            published.append(open_store(f"s3://{bucket}/p").publish("tiny-2", files, manifest))
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", publishing_meanwhile)
    assert store.sweep(without=(), delete=True) == []
    assert published == [True]
    for name, path in files.items():
        assert b"".join(store.read("tiny-2", name)) == path.read_bytes()


def test_an_old_object_is_renewed_before_a_manifest_names_it(bucket, make_release, monkeypatch):
    store = open_store(f"s3://{bucket}/p")
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    store.remove(["tiny-1"])
    make_older(bucket, hours=13)
    honest, changed = Bucket.put_if, []

    def record_then_put(self, key, data, **condition):
        changed.extend(
            self.head(f"objects/{entry['sha256']}")["LastModified"] for entry in manifest["files"].values()
        )
        return honest(self, key, data, **condition)

    monkeypatch.setattr(Bucket, "put_if", record_then_put)
    assert store.publish("tiny-2", files, manifest) is True
    assert len(changed) == 2
    assert all((datetime.now(UTC) - when).total_seconds() < 3600 for when in changed)


def test_no_part_is_sent_after_one_was_refused(bucket, make_release, monkeypatch):
    from botocore.client import BaseClient
    from botocore.exceptions import ClientError

    honest, tried = BaseClient._make_api_call, []

    def expired(self, operation, given):
        if operation == "UploadPart":
            tried.append(given["PartNumber"])
            raise ClientError({"Error": {"Code": "ExpiredToken"}}, operation)
        return honest(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", expired)
    with pytest.raises(StoreError, match=r"refuses these credentials \(ExpiredToken\)"):
        S3Store(f"s3://{bucket}", part_bytes=1000).publish("tiny-1", *make_release(50_000))
    assert set(tried) <= {1, 2, 3, 4}


class Streamed(BytesIO):
    """A response body with the interface of urllib3."""

    def stream(self, **_):
        yield self.read()


@pytest.mark.parametrize("request_name", ["PutObject", "UploadPart"])
@pytest.mark.parametrize(
    ("status", "code"), [(507, "XMinioStorageFull"), (403, "QuotaExceeded"), (507, "")], ids=str
)
def test_a_full_bucket_gives_an_error_leaves_nothing_visible_and_can_be_resumed(
    bucket, make_release, request_name, status, code
):
    """Replace the response of the server by the HTTP responses of other full stores."""
    from botocore.awsrequest import AWSResponse

    def full(request, **_):
        if "/objects/" not in request.url and request_name == "PutObject":
            return None  # let the probe pass; only files fail
        text = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if code else ""
        return AWSResponse(request.url, status, {}, Streamed(text.encode()))

    part_bytes = 5 << 20
    store = S3Store(f"s3://{bucket}/p", part_bytes=part_bytes)
    release = make_release(3000 if request_name == "PutObject" else 2 * part_bytes)
    event = f"before-send.s3.{request_name}"
    store._bucket.client.meta.events.register(event, full)
    with pytest.raises(StoreError, match=rf"is full \({code or 507}\): free space there") as caught:
        store.publish("tiny-1", *release)
    assert "\n" not in str(caught.value)
    assert store.versions() == []
    store._bucket.client.meta.events.unregister(event, full)
    assert store.publish("tiny-1", *release) is True
    for name, path in release[0].items():
        assert b"".join(store.read("tiny-1", name)) == path.read_bytes()


def test_a_full_bucket_does_not_move_an_alias(bucket):
    from botocore.awsrequest import AWSResponse

    def full(request, **_):
        return AWSResponse(request.url, 507, {}, Streamed())

    store = open_store(f"s3://{bucket}/p")
    store.write_alias("tiny/production", {"version": "a"}, None)
    _, token = store.alias("tiny/production")
    store._bucket.client.meta.events.register("before-send.s3.PutObject", full)
    with pytest.raises(StoreError, match=r"is full \(507\)"):
        store.write_alias("tiny/production", {"version": "b"}, token)
    assert store.alias("tiny/production") == ({"version": "a"}, token)
