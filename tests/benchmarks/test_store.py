"""What the commands on a store cost, counted in requests: the benchmark at a small size."""

import pytest
from stored_files import make_older

from srpo_core.storage import open_store

COMMANDS = ["releases", "promote", "verify --all", "gc", "gc --delete"]


def test_each_command_is_measured_on_a_directory(benchmark_named, tmp_path):
    store = benchmark_named("store")
    store.fill_directory(tmp_path, 3)
    lines = list(store.measure(open_store(str(tmp_path)), 3, skip=[]))
    assert [line["command"] for line in lines] == COMMANDS
    assert all(line["requests"] == 0 <= line["cpu_seconds"] for line in lines)
    assert open_store(str(tmp_path)).versions() == ["tiny-000000000002"]


@pytest.mark.s3
def test_the_requests_of_a_command_grow_by_a_few_for_each_version(benchmark_named, s3_environment):
    """A promotion reads every manifest for the page of the store. Of a removed version the manifest is read for the list and for its removal; deletions are sent together."""
    store, requests, deletions = benchmark_named("store"), {}, {}
    for versions in (4, 14):
        store.fill_bucket(f"store-of-{versions}", versions)
        make_older(f"store-of-{versions}", days=2)
        skip = ["verify --all"]
        for line in store.measure(open_store(f"s3://store-of-{versions}"), versions, skip=skip):
            requests[line["command"], versions] = line["requests"]
            deletions[line["command"], versions] = line["by_operation"].get("DeleteObjects", 0)
    grown = {name: requests[name, 14] - requests[name, 4] for name in COMMANDS if (name, 4) in requests}
    assert grown == {"releases": 10, "promote": 10, "gc": 10, "gc --delete": 20}
    assert deletions["gc --delete", 14] == deletions["gc --delete", 4] == 2  # of manifests, and of objects
