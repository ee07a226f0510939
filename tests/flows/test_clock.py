"""A machine whose clock jumps over the time of a schedule: server, worker and runs have a clock that the test sets."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from debian import install_package
from services import PATIENCE, Services

pytestmark = pytest.mark.nightly  # a server of its own, whose clock is not the machine's


def find_library():
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.fixture
def clock(tmp_path):
    """Variables of processes with another clock, and a function that sets it: hours from the machine's."""
    if find_library() is None:
        install_package("libfaketime")
    if (library := find_library()) is None:
        pytest.skip("libfaketime is not installed, and could not be: apt-get install libfaketime")
    file = tmp_path / "clock"

    def put(hours):
        file.with_suffix(".part").write_text(f"{hours * 3600:+d}\n")
        file.with_suffix(".part").rename(file)

    put(0)
    variables = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return variables, put


@pytest.fixture
def services(tmp_path):
    made = Services(tmp_path)
    try:
        yield made
    finally:
        made.end()


def nights(services):
    """Return the runs of the deployment `align` by the time for which they are planned."""
    align = services.server.call("/deployments/name/align/align")["id"]
    runs = services.server.call("/flow_runs/filter", {"deployments": {"id": {"any_": [align]}}, "limit": 200})
    planned = {}
    for run in runs:
        planned.setdefault(datetime.fromisoformat(run["expected_start_time"]), []).append(run)
    return planned


def test_a_clock_that_is_set_forward_over_the_schedule_and_back_plans_one_run_for_each_night(services, clock):
    variables, put = clock
    services.start_server(variables)
    services.deploy()
    services.wait_until(lambda: len(nights(services)) >= 3)
    first, second = sorted(nights(services))[:2]
    assert (first.hour, first.minute, second - first) == (2, 0, timedelta(days=1))
    hours = int((first - datetime.now(UTC)).total_seconds() // 3600) + 2
    furthest = max(nights(services))

    put(hours)  # an hour or two after the first of them
    services.start_worker(variables)
    services.wait_until(lambda: max(nights(services)) > furthest)
    (night,) = nights(services)[first]
    services.finish(night["id"])

    put(0)
    later = services.start_run("align/align-on-new-data", publish=False)  # the clock is back, and runs start
    services.finish(later)
    put(hours)
    services.server.wait("/flow_runs/filter", {}, bool, PATIENCE)
    services.finish(services.start_run("align/align-on-new-data", publish=False))
    planned = nights(services)
    assert {len(runs) for runs in planned.values()} == {1}
    assert [run["id"] for run in planned[first]] == [night["id"]]
    assert {run["state_type"] for night in planned if night > first for (run,) in [planned[night]]} == {
        "SCHEDULED"
    }
    assert all((night.hour, night.minute) == (2, 0) for night in planned)
