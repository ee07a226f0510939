"""The S3 store against the faults of other servers and of networks, which a proxy in front of moto makes."""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import botocore.endpoint
import pytest
from botocore.retries.standard import ExponentialBackoff
from faulty_proxy import (
    FaultyProxy,
    busy,
    honest,
    losing_answers,
    racy,
    refusal,
    refusing_checksums,
    virtual_hosts_only,
    whole_checksums,
    without,
)
from small_release import publish_small
from stored_files import make_older

from srpo_core.errors import StoreError
from srpo_core.release.aliases import promote
from srpo_core.release.references import read_alias
from srpo_core.storage import S3Store, open_store, require_conditions, require_publishable
from srpo_core.storage.s3 import client as client_module

pytestmark = pytest.mark.s3
DELAYS = ExponentialBackoff.delay_amount


@pytest.fixture
def proxy(bucket, s3_environment, monkeypatch):
    """A proxy in front of moto, which the stores of this test use."""
    proxy = FaultyProxy(s3_environment)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def store(proxy, bucket):
    return open_store(f"s3://{bucket}/p")


def assert_whole(store, version, files):
    for name, path in files.items():
        assert b"".join(store.read(version, name)) == path.read_bytes()


def written(proxy, name):
    return [request for request in proxy.seen if request.method == "PUT" and name in request.path]


@pytest.mark.parametrize("num_bytes", [3000, 11 << 20], ids=["whole", "in parts"])
def test_a_store_that_refuses_sha256_gets_md5_and_everything_works(proxy, bucket, make_release, num_bytes):
    proxy.fault = refusing_checksums
    store = S3Store(f"s3://{bucket}/p", part_bytes=5 << 20)
    files, manifest = make_release(num_bytes)
    require_publishable(store, accepted=False)
    assert store.publish("tiny-1", files, manifest) is True
    assert_whole(store, "tiny-1", files)
    for request in written(proxy, "/objects/"):
        assert "content-md5" in request.headers
        assert not any("checksum" in name for name in request.headers)
    assert not [request for request in proxy.seen if request.method == "GET" and "/objects/" in request.path][
        :-2
    ]
    assert store.write_alias("tiny/production", {"version": "tiny-1"}, None) is True
    assert store.remove(["tiny-1"]) == ["tiny-1"]


def test_the_checksum_is_not_given_up_if_it_is_not_the_reason(proxy, store, make_release):
    store.probe()
    proxy.fault = without("if-none-match", status=400, code="InvalidArgument")
    with pytest.raises(StoreError, match="InvalidArgument"):
        store.publish("tiny-1", *make_release())
    proxy.fault = honest
    store.publish("tiny-1", *make_release())
    assert all("x-amz-checksum-sha256" in request.headers for request in written(proxy, "manifest.json"))


def test_a_range_asks_for_no_checksum_of_the_whole_object(proxy, store, make_release):
    proxy.fault = whole_checksums
    files, manifest = make_release()
    store.publish("tiny-1", files, manifest)
    for start in (0, 1000):
        data = b"".join(store.read("tiny-1", "transformer/weights", start))
        assert data == files["transformer/weights"].read_bytes()[start:]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_store_that_refuses_three_of_ten_requests_as_busy_is_used_without_an_error(
    proxy, store, make_release, seed
):
    proxy.fault = busy(0.3, seed)
    files, manifest = make_release()
    require_publishable(store, accepted=False)
    assert store.publish("tiny-1", files, manifest) is True
    assert_whole(store, "tiny-1", files)
    assert store.write_alias("tiny/production", {"version": "tiny-1"}, None) is True


def test_a_store_that_is_always_busy_gives_one_line(proxy, store):
    proxy.fault = busy(1, 0)
    with pytest.raises(StoreError, match=r"was too busy in each of 10 attempts \(SlowDown\)") as caught:
        store.versions()
    assert "\n" not in str(caught.value)


def test_an_outage_of_twenty_seconds_is_survived(proxy, store, monkeypatch, make_release, caplog):
    """The delays are botocore's own; sleeping only moves the clock by which the server is down."""
    clock = [0.0]
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", DELAYS)
    monkeypatch.setattr(
        botocore.endpoint, "time", SimpleNamespace(sleep=lambda s: clock.__setitem__(0, clock[0] + s))
    )
    random.seed(0)
    files, manifest = make_release()
    proxy.fault = lambda request, send: send(request) if clock[0] > 20 else None
    assert store.publish("tiny-1", files, manifest) is True
    assert clock[0] > 20
    assert caplog.text.count("does not answer") == 1
    assert_whole(store, "tiny-1", files)


def test_a_promotion_whose_answer_is_lost_finds_out_that_it_moved(proxy, store, tmp_path):
    for number in (1, 2):
        publish_small(store, tmp_path, number)
    promote(store, "tiny-1")
    proxy.fault = losing_answers("production.json")
    assert promote(store, "tiny-2").after == "tiny-2"
    assert [step["to"] for step in read_alias(store, "tiny/production").history] == ["tiny-1", "tiny-2"]


def test_a_promotion_that_was_overtaken_after_a_lost_answer_knows_that_it_moved(proxy, store, tmp_path):
    """The write was carried out, its answer was lost, and before it was repeated another process moved on."""
    for number in (1, 2, 3):
        publish_small(store, tmp_path, number)
    promote(store, "tiny-1")
    other, lost = open_store(store.uri), []

    def fault(request, send):
        answer = send(request)
        if request.method == "PUT" and "production.json" in request.path and not lost:
            lost.append(request)
            promote(other, "tiny-3")
            return None
        return answer

    proxy.fault = fault
    assert promote(store, "tiny-2").after == "tiny-2"
    assert [step["to"] for step in read_alias(store, "tiny/production").history] == [
        "tiny-1",
        "tiny-2",
        "tiny-3",
    ]


def test_a_write_that_was_not_carried_out_is_not_taken_for_one_that_was(proxy, store):
    store.write_alias("tiny/production", {"version": "tiny-1"}, None)
    _, token = store.alias("tiny/production")
    proxy.fault = lambda request, send: None if request.method == "PUT" else send(request)
    with pytest.raises(StoreError, match="cannot be reached in 10 attempts"):
        store.write_alias("tiny/production", {"version": "tiny-2"}, token)
    down = []
    proxy.fault = lambda request, send: down.append(1) if request.method == "PUT" or down else send(request)
    with pytest.raises(
        StoreError, match=r"did not answer the write of .*production\.json, which may have been"
    ):
        store.write_alias("tiny/production", {"version": "tiny-2"}, token)


def test_the_address_style_of_the_profile_is_used(
    bucket, s3_environment, monkeypatch, tmp_path, make_release
):
    """Without the style virtual, the bucket is in the path behind an endpoint of one's own."""
    proxy = FaultyProxy(s3_environment, virtual_hosts_only)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    try:
        with pytest.raises(StoreError, match="PathStyleRequestNotAllowed"):
            open_store(f"s3://{bucket}/p").versions()
        (tmp_path / "config").write_text("[profile cos]\ns3 =\n    addressing_style = virtual\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", "cos")
        files, manifest = make_release()
        store = open_store(f"s3://{bucket}/p")
        assert store.publish("tiny-1", files, manifest) is True
        assert_whole(store, "tiny-1", files)
    finally:
        proxy.close()


@pytest.mark.parametrize(
    "setting", ["endpoint_url = {}", "services = own\n[services own]\ns3 =\n  endpoint_url = {}"]
)
def test_an_endpoint_of_the_profile_is_addressed_by_path_too(
    bucket, s3_environment, monkeypatch, tmp_path, setting
):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(f"[default]\n{setting.format(s3_environment)}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    client = client_module.make_client("s3://bucket")
    assert client.meta.endpoint_url == s3_environment
    assert client.meta.config.s3["addressing_style"] == "path"


def test_a_profile_that_does_not_exist_is_named(s3_environment, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "none-such")
    with pytest.raises(StoreError, match=r"none-such.*check AWS_PROFILE"):
        open_store("s3://bucket").versions()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (without("if-match"), r"conditional writes \(If-Match\)"),
        (without("if-match", "if-none-match"), r"conditional writes \(If-None-Match, If-Match\)"),
        (
            racy(8),
            r"\(If-None-Match of simultaneous writers, If-Match of simultaneous writers\).*params\.yaml and write",
        ),
    ],
    ids=["If-Match is not implemented", "no condition is", "simultaneous writers all win"],
)
def test_a_store_without_safe_conditional_writes_is_refused_before_anything_is_published(
    proxy, store, fault, message
):
    proxy.fault = fault
    with pytest.raises(StoreError, match=message):
        require_publishable(store, accepted=False)
    require_publishable(open_store(store.uri), accepted=True)


def test_the_refusal_and_the_warning_name_the_file_of_the_setting(proxy, store, tmp_path, caplog):
    proxy.fault = without("if-match")
    with pytest.raises(StoreError, match=rf"release\.unconditional_store: true in {tmp_path}/params\.yaml"):
        require_conditions(store, accepted=False, where=tmp_path / "params.yaml")
    require_conditions(store, accepted=True, where=tmp_path / "params.yaml")
    assert f"{tmp_path}/params.yaml accepts it" in caplog.text


def test_a_store_that_deletes_nothing_is_refused(proxy, store):
    def fault(request, send):
        deletes = request.method == "DELETE" or "?delete" in request.path
        return refusal(403, "AccessDenied") if deletes else send(request)

    proxy.fault = fault
    with pytest.raises(StoreError, match=r"refuses these credentials \(AccessDenied\)"):
        require_publishable(store, accepted=True)


def test_a_store_that_cannot_delete_many_objects_at_once_deletes_each(proxy, store, make_release):
    proxy.fault = without("delete")
    require_publishable(store, accepted=False)
    store.publish("tiny-1", *make_release())
    assert store.remove(["tiny-1"]) == ["tiny-1"]
    assert store.versions() == []


def test_the_probe_leaves_nothing_behind(proxy, store, bucket):
    require_publishable(store, accepted=False)
    listed = store._bucket.client.list_objects_v2(Bucket=bucket)
    assert "Contents" not in listed


def test_a_wrong_secret_is_named(proxy, store):
    proxy.fault = lambda *_: refusal(403, "SignatureDoesNotMatch")
    with pytest.raises(StoreError, match=r"SignatureDoesNotMatch.*check AWS_SECRET_ACCESS_KEY$"):
        store.versions()


def test_a_sweep_by_a_machine_whose_clock_is_two_days_ahead_keeps_a_publication_in_progress(
    proxy, store, bucket, make_release, monkeypatch
):
    """For the server two days pass less than for this machine: its dates and its header Date are two days behind."""
    behind = timedelta(days=2)

    def fault(request, send):
        answer = send(request)
        return replace(
            answer, headers={**answer.headers, "Date": format_datetime(datetime.now(UTC) - behind)}
        )

    files, manifest = make_release()
    proxy.fault = fault
    swept, honest_check = [], S3Store._require_safe

    def sweep_meanwhile(self, *arguments):
        make_older(bucket, days=2)
        swept.extend(open_store(store.uri).sweep(without=(), delete=True))
        honest_check(self, *arguments)

    monkeypatch.setattr(S3Store, "_require_safe", sweep_meanwhile)
    assert store.publish("tiny-1", files, manifest) is True
    assert swept == []
    assert_whole(store, "tiny-1", files)


def test_objects_that_are_removed_during_a_publication_are_sent_again_before_the_manifest(
    store, bucket, make_release, monkeypatch
):
    files, manifest = make_release()
    honest_check, removed = S3Store._require_safe, []

    def remove_then_check(self, *arguments):
        removed.extend(f"objects/{entry['sha256']}" for entry in manifest["files"].values())
        self._bucket.delete_all(removed)
        honest_check(self, *arguments)

    monkeypatch.setattr(S3Store, "_require_safe", remove_then_check)
    assert store.publish("tiny-1", files, manifest) is True
    assert len(removed) == 2
    assert_whole(store, "tiny-1", files)


def test_a_store_that_keeps_losing_an_object_publishes_nothing(proxy, store, make_release):
    """Only each second question for the object finds it: those of the sender, not those before the manifest."""
    files, manifest = make_release()
    asked, gone = [], manifest["files"]["README.md"]["sha256"]

    def fault(request, send):
        if request.method == "HEAD" and gone in request.path:
            asked.append(request)
            if len(asked) % 2:
                return refusal(404, "NoSuchKey")
        return send(request)

    proxy.fault = fault
    with pytest.raises(
        StoreError, match=r"loses README\.md of tiny-1 again and again, and nothing was published"
    ):
        store.publish("tiny-1", files, manifest)
    assert store.versions() == []


def test_a_sweep_without_the_time_of_the_store_removes_nothing(proxy, store):
    proxy.fault = lambda request, send: replace(
        (answer := send(request)), headers={k: v for k, v in answer.headers.items() if k.lower() != "date"}
    )
    with pytest.raises(StoreError, match=r"without its time \(header Date\)"):
        store.sweep(without=(), delete=True)
