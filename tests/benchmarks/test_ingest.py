import json

import pytest

from srpo_core import artifacts
from srpo_core.data.decoded_images import decode_images
from srpo_core.data.images import open_images
from srpo_core.stages.ingest import run

RECORDS = 60
# CPU seconds for 100,000 records without images, three times of what 100,000 of 800,000 take (docs/data.md)
MOST_PER_100K = 7


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


def test_the_default_sizes_are_those_of_the_fit_in_the_docs(ingest, monkeypatch, capsys):
    sizes = []

    def measured(work, number, side, images):
        sizes.append(number)
        return {"records": number, "cpu_seconds": 1 + number / 1e5, "peak_rss_gb": 0.5}

    monkeypatch.setattr(ingest, "in_own_process", measured)
    monkeypatch.setattr(ingest.sys, "argv", ["ingest.py"])
    ingest.main()
    assert (min(sizes), max(sizes)) == (50_000, 800_000)
    fit = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (fit["cpu_seconds_per_100k"], fit["cpu_seconds_at_0"], fit["peak_gb_at_0"]) == (1.0, 1.0, 0.5)


@pytest.mark.nightly  # half a minute of CPU time
def test_the_cpu_time_of_records_stays_within_three_times_of_what_the_docs_say(ingest, tmp_path):
    lines = [
        ingest.in_own_process(tmp_path / str(number), number, 64, "none") for number in (20_000, 120_000)
    ]
    assert ingest.linear_fit(lines)["cpu_seconds_per_100k"] <= MOST_PER_100K


@pytest.mark.nightly  # ten seconds of CPU time, for a first run by DVC
def test_an_unchanged_source_is_found_unchanged_in_three_seconds(ingest, tmp_path):
    figures = ingest.unchanged_run(tmp_path, 1000, 32, "used")
    assert figures["records"] == 1000
    assert 0 < figures["unchanged_cpu_seconds"] <= 3
