"""What a terminal is told while a release is copied, read back, and downloaded."""

import pytest
from small_release import NAMES, publish_small

from srpo_core.release.download import fetch, pull
from srpo_core.release.trust import trust_here
from srpo_core.release.verify import inspect
from srpo_core.storage import open_store


def counted(reports, label):
    """Return how far something was in each report, and how far it goes."""
    done = [done for one, done, _ in reports if one == label]
    (total,) = {total for one, _, total in reports if one == label}
    assert done[0] == 0
    assert done == sorted(done)
    return done, total


@pytest.mark.parametrize("where", ["directory", "bucket"])
def test_publishing_verifying_and_downloading_count_the_bytes(where, tmp_path, request, reports):
    bucket = request.getfixturevalue("bucket") if where == "bucket" else None
    store = open_store(str(tmp_path / "store") if bucket is None else f"s3://{bucket}")
    version = publish_small(store, tmp_path, 1, repeats=50_000)
    total = sum(entry["bytes"] for entry in store.manifest(version)["files"].values())
    sent, all_bytes = counted(reports, "copy files" if bucket is None else "upload files")
    assert (sent[-1], all_bytes) == (total, total)
    assert len(sent) > len(NAMES)

    inspect(store, version, trust_here())
    read, all_bytes = counted(reports, "read files back")
    assert (read[-1], all_bytes) == (total, total)

    target = tmp_path / "here"
    pull(store, version, format_name="bf16", target=target)
    formats = [
        target / name for name in ("tiny-bf16.safetensors", "transformer/weights", "transformer/config.json")
    ]
    pulled, all_bytes = counted(reports, "download")
    assert pulled[-1] == all_bytes == sum(path.stat().st_size for path in formats)
    reports.clear()
    formats[0].unlink()
    formats[0].with_name(f"{formats[0].name}.part").write_bytes(
        b"tiny-bf16"
    )  # nine bytes of an earlier download
    pull(store, version, format_name="bf16", target=target)
    resumed, all_bytes = counted(reports, "download")
    assert resumed[:2] == [0, 9]
    assert resumed[-1] == all_bytes == formats[0].stat().st_size

    if bucket is not None:
        reports.clear()
        fetch(store, version, cache=tmp_path / "cache")
        fetched, all_bytes = counted(reports, "download")
        assert (fetched[-1], all_bytes) == (total, total)
