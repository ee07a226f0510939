import json

import pytest

from srpo_core import artifacts
from srpo_core.data.decoded_images import decode_images
from srpo_core.data.images import open_images
from srpo_core.stages.ingest import run

RECORDS = 60


@pytest.fixture(scope="module")
def ingest(benchmark_named):
    return benchmark_named("ingest")


@pytest.fixture(scope="module")
def made(ingest, tmp_path_factory):
    """A data set, and the number of its images."""
    directory = tmp_path_factory.mktemp("hpd")
    return directory, ingest.make_hpd(directory, RECORDS, 24)


def test_the_synthetic_data_are_in_hpdv2s_schema_and_are_ingested(ingest, made, tmp_path, monkeypatch):
    source, _ = made
    record = json.loads((source / "train.json").read_text())[0]
    assert sorted(record) == ["file_path", "human_preference", "prompt"]
    record = json.loads((source / "test.json").read_text())[0]
    assert sorted(record) == ["image_path", "prompt", "rank", "raw_annotations"]
    monkeypatch.chdir(tmp_path)
    run(**ingest.ingest_arguments(source, "used"))
    records = artifacts.read_json(artifacts.VALIDATION)["records"]
    assert records["bad"] == 0
    assert sum(records["read"].values()) == RECORDS + ingest.TEST_RECORDS + 4 * ingest.BENCHMARK_PROMPTS


def test_all_images_differ_and_can_be_decoded(ingest, made):
    source, count = made
    digests = set()
    for split, own in (("train", count - 9 * ingest.TEST_RECORDS), ("test", 300)):
        with open_images(source, split) as stored:
            found = list(decode_images(stored, [f"{number:08d}.jpg" for number in range(own)], workers=2))
        assert {image.size for image in found} == {(24, 24)}
        digests.update(image.digest for image in found)
    assert len(digests) == count - 9 * ingest.TEST_RECORDS + 300


def test_the_fit_is_a_line_through_the_figures(ingest):
    lines = [
        {"records": number, "cpu_seconds": 5 + number / 50_000, "peak_rss_gb": 0.5 + number / 1e6}
        for number in (50_000, 100_000, 400_000)
    ]
    assert ingest.linear_fit(lines) == {
        "cpu_seconds_per_100k": 2.0,
        "cpu_seconds_at_0": 5.0,
        "peak_gb_per_100k": 0.1,
        "peak_gb_at_0": 0.5,
    }


def test_decoding_is_compared_with_a_plain_pool(ingest, tmp_path):
    figures = ingest.decoding(tmp_path, 40, 32, repeats=1)
    assert (figures["images"], figures["side"]) == (40, 32)
    assert figures["ratio"] == pytest.approx(figures["images_per_second"] / figures["plain_pool"], rel=0.02)
    assert figures["images_per_second"] > 0
