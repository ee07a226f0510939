"""The remote of the data: what is missing, cut off or altered is found and sent again; nothing unfinished remains."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import boto3
import pytest
from faulty_proxy import FaultyProxy
from swift_server import s3_variables

from srpo_core.errors import StoreError
from srpo_core.runtime import file_lock
from srpo_core.workspace import data_remote, data_versions
from srpo_core.workspace.data_remote import audit_remote, without_unfinished_uploads
from srpo_core.workspace.worktree import fetch_data, open_workspace

ROOT = Path(__file__).resolve().parents[2]
HPD = ROOT / "assets/tiny/hpd"
NAME = "emoji"
PUSH = """
import sys
from pathlib import Path
from srpo_core.workspace import data_versions
from srpo_core.workspace.worktree import open_workspace

source, name = sys.argv[1:]
with open_workspace(Path.cwd(), revision="HEAD") as workspace:
    data_versions.collect(source, workspace.path / "data" / name, "hpdv2")
    data_versions.track(workspace, name)
    data_versions.push(workspace, name)
"""
pytestmark = pytest.mark.pipeline


def use_remote(checkout, url):
    """Give the default remote another address, as `dvc remote modify --local` does."""
    (checkout / ".dvc/config.local").write_text(f"['remote \"default\"']\n    url = {url}\n")


def add_data(workspace):
    data_versions.collect(HPD, workspace.path / "data" / NAME, "hpdv2")
    data_versions.track(workspace, NAME)


@pytest.fixture(params=["moto", pytest.param("swift", marks=pytest.mark.nightly)])
def bucket(request, tmp_path, monkeypatch):
    """A bucket of moto, and of a real server; DVC can use it, too: it cannot read /dev/null as a configuration."""
    if request.param == "moto":
        name = request.getfixturevalue("bucket")  # of the fixture that this one overrides
    else:
        for variable, value in s3_variables(request.getfixturevalue("swift_endpoint")).items():
            monkeypatch.setenv(variable, value)
        name = f"data-{abs(hash(request.node.nodeid)):x}"
        boto3.client("s3").create_bucket(Bucket=name)
    (tmp_path / "aws").touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    return name


@pytest.fixture
def objects(bucket):
    """Read and write the objects of the bucket."""
    return boto3.resource("s3").Bucket(bucket)


def largest(objects):
    return max(objects.objects.all(), key=lambda one: one.size).Object()


def oid_of(one):
    return "".join(one.key.split("/")[-2:])


def content_of(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def flip_a_byte(content):
    return content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]


@pytest.mark.s3
def test_objects_altered_at_the_same_size_missing_or_cut_are_found_repaired_and_never_pulled(
    standin, bucket, objects
):
    use_remote(standin, f"s3://{bucket}/some/prefix")
    with open_workspace(standin, revision="HEAD") as workspace:
        add_data(workspace)
        audit = data_versions.push(workspace, NAME)
        assert str(audit) == (
            "compared 8 objects by size and MD5 (8 as the store reports it, 0 by reading their bytes)"
        )
        altered = largest(objects)
        honest = altered.get()["Body"].read()
        altered.put(Body=flip_a_byte(honest))
        assert audit_remote(workspace, NAME).damaged == (oid_of(altered),)

        shutil.rmtree(standin / ".dvc/cache")
        shutil.rmtree(workspace.path / "data" / NAME)
        with pytest.raises(StoreError, match=r"emoji.dvc cannot be restored .*ERROR: .*srpo data SOURCE"):
            fetch_data(workspace, [f"data/{NAME}.dvc"])
        assert not (workspace.path / "data" / NAME / "train.tar").exists()

        add_data(workspace)
        others = [
            one for one in objects.objects.all() if not one.key.endswith(".dir") and one.key != altered.key
        ]
        missing, cut = (one.Object() for one in others[:2])
        missing.delete()
        cut.put(Body=b"half")
        assert audit_remote(workspace, NAME).damaged == tuple(sorted(map(oid_of, (altered, missing, cut))))
        audit = data_versions.push(workspace, NAME, "full")
        assert (audit.objects, audit.read, audit.damaged) == (8, 8, ())
        assert altered.get()["Body"].read() == honest

        shutil.rmtree(standin / ".dvc/cache")
        shutil.rmtree(workspace.path / "data" / NAME)
        fetch_data(workspace, [f"data/{NAME}.dvc"])
        assert content_of(workspace.path / "data" / NAME) == content_of(HPD)


@pytest.mark.s3
def test_the_md5_of_an_object_sent_in_parts_is_computed_from_its_parts(standin, bucket, objects):
    source = shutil.copytree(HPD, standin.parent / "source")
    for split, size in (("train", (5 << 20) + 7), ("test", 3)):
        (source / f"{split}.tar").write_bytes(bytes(range(256)) * (size // 256) + b"x")
    use_remote(standin, f"s3://{bucket}")
    with open_workspace(standin, revision="HEAD") as workspace:
        data_versions.collect(source, workspace.path / "data" / NAME, "hpdv2")
        data_versions.track(workspace, NAME)
        data_versions.push(workspace, NAME)
        sent = largest(objects)
        whole = sent.get()["Body"].read() + b"y" * 100
        for content, damaged in ((whole[:-100], False), (flip_a_byte(whole[:-100]), True)):
            upload = sent.initiate_multipart_upload()
            parts = []
            for number, start in enumerate(range(0, len(content), 5 << 20), 1):
                answer = upload.Part(number).upload(Body=content[start : start + (5 << 20)])
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            upload.complete(MultipartUpload={"Parts": parts})
            sent.reload()
            assert sent.e_tag.strip('"').endswith(f"-{len(parts)}")
            audit = audit_remote(workspace, NAME)
            # the bytes are read only where the reported MD5 is not the right one
            assert (bool(audit.damaged), audit.read) == (damaged, int(damaged))


@pytest.mark.s3
def test_a_push_that_fails_names_the_error_of_dvc(standin, bucket):
    use_remote(standin, "s3://no-such-bucket-here/prefix")
    with open_workspace(standin, revision="HEAD") as workspace:
        add_data(workspace)
        with pytest.raises(StoreError, match=r"data/emoji was not pushed: .*ERROR: .*NoSuchBucket") as raised:
            data_versions.push(workspace, NAME)
    assert "Having any troubles" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.s3
def test_a_push_that_fails_or_is_killed_leaves_no_unfinished_upload(standin, bucket, objects, monkeypatch):
    use_remote(standin, f"s3://{bucket}/prefix")

    def begun():
        return {upload.id for upload in objects.multipart_uploads.all()}

    with open_workspace(standin, revision="HEAD") as workspace:
        add_data(workspace)
        data_versions.push(workspace, NAME)
        sent = largest(objects)
        others = {sent.initiate_multipart_upload().id, objects.Object("else").initiate_multipart_upload().id}

        def fail_midway(*_):
            sent.initiate_multipart_upload()
            raise StoreError("the store is full")

        with monkeypatch.context() as patch:
            patch.setattr(data_versions, "_push_once", fail_midway)
            with pytest.raises(StoreError, match="the store is full"):
                data_versions.push(workspace, NAME)
        assert begun() == others  # what others send is not touched

        killed = without_unfinished_uploads(workspace, NAME)
        killed.__enter__()  # a push that is killed never leaves this block
        begun_by_killed = sent.initiate_multipart_upload().id
        with open_workspace(standin, revision="HEAD") as other:
            add_data(other)
            with without_unfinished_uploads(other, NAME):
                assert begun_by_killed in begun()  # its run is alive: it holds its lock
    with open_workspace(standin, revision="HEAD") as workspace:
        add_data(workspace)
        with without_unfinished_uploads(workspace, NAME):
            assert begun() == others
    killed.gen.close()
    assert begun() == others
    assert not list((standin / ".srpo" / data_remote.PUSHES).glob("*.json"))


@pytest.mark.s3
@pytest.mark.nightly  # DVC sends files of 100 MB and more in parts
@pytest.mark.parametrize("bucket", ["moto"], indirect=True)  # a real server refuses the name of the proxy
def test_a_push_killed_after_its_first_part_is_ended_by_the_next_one(
    standin, bucket, objects, monkeypatch, s3_environment
):
    """The proxy stores the first part, and answers nothing about parts any more."""
    source = shutil.copytree(HPD, standin.parent / "source")
    with (source / "train.tar").open("wb") as file:
        file.truncate(101 << 20)
    one_at_a_time, sent, killed = threading.Lock(), threading.Event(), threading.Event()

    def lose_parts(request, send):
        if request.method != "PUT" or "partNumber=" not in request.path:
            return send(request)
        with one_at_a_time:
            if not sent.is_set():
                send(request)
                sent.set()
        killed.wait(120)
        return None

    proxy = FaultyProxy(s3_environment, lose_parts)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    use_remote(standin, f"s3://{bucket}/prefix")
    push = subprocess.Popen([sys.executable, "-c", PUSH, source, NAME])
    try:
        assert sent.wait(240), "no part was sent"
    finally:
        push.kill()
        push.wait()
        killed.set()
        proxy.close()
    (begun,) = objects.multipart_uploads.all()
    assert [part.part_number for part in begun.Object().MultipartUpload(begun.id).parts.all()]
    (record,) = (standin / ".srpo" / data_remote.PUSHES).glob("*.json")
    until = time.monotonic() + 60
    while file_lock.is_held(standin / ".srpo/runs" / record.stem / "lock"):  # its DVC ends a moment later
        assert time.monotonic() < until
        time.sleep(0.1)

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_environment)
    with open_workspace(standin, revision="HEAD") as workspace:
        data_versions.collect(source, workspace.path / "data" / NAME, "hpdv2")
        data_versions.track(workspace, NAME)
        assert data_versions.push(workspace, NAME).damaged == ()
        assert audit_remote(workspace, NAME, "full").damaged == ()
    assert list(objects.multipart_uploads.all()) == []
    assert not record.exists()


def test_an_altered_object_in_a_directory_is_found_by_reading_it(standin):
    with open_workspace(standin, revision="HEAD") as workspace:
        add_data(workspace)
        assert data_versions.push(workspace, NAME).read == 8
        remote = standin / ".srpo/dvc-remote"
        altered = max(
            (path for path in remote.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
        )
        honest = altered.read_bytes()
        altered.chmod(0o644)
        altered.write_bytes(flip_a_byte(honest))
        assert audit_remote(workspace, NAME).damaged == (altered.parent.name + altered.name,)
        assert data_versions.push(workspace, NAME).damaged == ()
        assert altered.read_bytes() == honest

        cached = standin / ".dvc/cache/files/md5" / altered.parent.name / altered.name
        for path in (altered, cached):
            path.chmod(0o644)
            path.write_bytes(flip_a_byte(honest))
        with pytest.raises(StoreError, match=rf"cache has lost .*{cached.name}, or has other bytes"):
            data_versions.push(workspace, NAME)


def test_every_remote_of_a_workspace_is_verified(standin):
    from dvc.config import Config

    (standin / ".dvc/config.local").write_text(
        "['remote \"other\"']\n    url = s3://bucket/data\n[core]\n    remote = other\n"
    )
    with open_workspace(standin, revision="HEAD") as workspace:
        seen = Config(str(workspace.path / ".dvc"))["remote"]
    assert {name: remote["verify"] for name, remote in seen.items()} == {"default": True, "other": True}
