"""Faults of the services: after each one the state shown is true, a retry resumes, one version is published, none is lost.

The services are real: a server, workers, and the project's flow `align`, whose stages are held where a fault is to happen.
"""

import os
import signal
import sqlite3
import time

import pytest
from conftest import s3_variables
from faulty_proxy import FaultyProxy, honest
from held_pipeline import STAGES
from living import ended, runs
from services import ENDED, PATIENCE, Services

pytestmark = pytest.mark.nightly  # each test takes up to two minutes

RESUMED = ["train", "select", "evaluate", "gate", "report", "quantize"]  # after a fault in train


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    made = Services(tmp_path_factory.mktemp("services"))
    try:
        made.start_server()
        made.deploy()
        made.start_worker()
        made.finish(made.start_run(publish=False))  # what comes before train is cached from here on
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def _everything_runs(services):
    """Before each test: server and a worker run, no stage is held, and no run is left."""
    services.let_go()
    services.stages_run()
    yield
    services.let_go()


@pytest.fixture
def new_settings(services):
    """Settings with which no earlier test has run, so that stages from train on run and publish a new version."""
    services.number_of_settings += 1
    return {"patch": {"train": {"steps": 100 + services.number_of_settings}}}


def held_run(services, settings, stage="train"):
    """Start a run and wait until it is held in a stage; return its id, and the process of the stage."""
    services.hold(stage)
    run = services.start_run(**settings)
    return run, services.held_stage(run)


def nothing_is_shown_as_running(services, run):
    return not {"Running", "Pending"} & set(services.stages_shown(run).values())


def one_more(before, after):
    """Whether one version was published since, once: the alias has moved to it once."""
    (versions, moves), (versions_now, moves_now) = before, after
    (new,) = set(versions_now) - set(versions)
    return versions_now == sorted([*versions, new]) and moves_now == [*moves, new]


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_run_whose_process_is_ended_is_shown_as_crashed_and_its_retry_resumes(services, new_settings, by):
    before = services.published()
    run, stage = held_run(services, new_settings)
    services.flow_process(run).send_signal(by)
    crashed = services.wait_for(run, "CRASHED")
    assert "SIG" in crashed["state"]["message"] or "signal" in crashed["state"]["message"], crashed["state"]
    assert ended([stage], 60)
    services.wait_until(lambda: nothing_is_shown_as_running(services, run))
    assert services.published() == before
    assert services.stages_run() == ["train"]

    services.let_go()
    services.retry_when_settled(run)
    services.finish(run)
    assert services.stages_run() == RESUMED
    assert set(services.stages_shown(run).values()) == {"Cached", "Completed"}
    assert one_more(before, services.published())


def test_a_run_whose_worker_is_killed_ends_at_its_next_line_of_output_and_its_retry_resumes(
    services, new_settings
):
    """Nobody could cancel it any more, and nobody reads what it prints."""
    before = services.published()
    run, stage = held_run(services, new_settings)
    services.kill_worker(services.workers[0])
    services.start_worker()
    assert services.server.call(f"/flow_runs/{run}")["state_type"] == "RUNNING"
    assert runs(stage)
    services.let_go()
    services.wait_for(run, "CRASHED")
    services.wait_until(lambda: nothing_is_shown_as_running(services, run))
    services.stages_run()
    services.retry_when_settled(run)
    services.finish(run)
    assert "ingest" not in services.stages_run()
    assert one_more(before, services.published())


@pytest.fixture
def usual_silence(services):
    """Let the server wait as long as in use again: a slow run of another test must not be shown as crashed."""
    yield
    services.notice_silence("align", seconds=300)


@pytest.mark.usefixtures("usual_silence")
@pytest.mark.parametrize("noticed", ["by the next run", "by its heartbeats"])
def test_a_run_that_died_with_its_worker_is_shown_as_crashed_and_its_retry_resumes(
    services, new_settings, noticed
):
    """Until then it holds the only slot of its deployment; the next run here is of another one."""
    before = services.published()
    run, stage = held_run(services, new_settings)
    if noticed == "by its heartbeats":
        services.notice_silence("align", seconds=45)  # and not after five minutes
        time.sleep(10)  # the server has loaded it, and the run has sent a heartbeat
    process = services.flow_process(run)
    services.kill_worker(services.workers[0])
    process.kill()
    assert ended([process, stage], 60)
    services.let_go()
    assert services.server.call(f"/flow_runs/{run}")["state_type"] == "RUNNING"
    services.start_worker()
    if noticed == "by the next run":
        services.finish(services.start_run("align/align-on-new-data", publish=False))
    message = {
        "by the next run": "its process has died",
        "by its heartbeats": "no heartbeat for 300 s: its process has died",
    }
    crashed = services.wait_for(run, "CRASHED")
    assert crashed["state"]["message"] == message[noticed]
    services.stages_run()
    services.retry(run)
    services.finish(run)
    assert services.stages_run() == RESUMED
    assert nothing_is_shown_as_running(services, run)
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


def test_a_server_that_is_killed_and_comes_back_shows_the_run_as_running_and_then_as_completed(
    services, new_settings
):
    before = services.published()
    run, stage = held_run(services, new_settings)
    services.kill_server()
    time.sleep(5)
    services.start_server()
    found = services.server.call(f"/flow_runs/{run}")
    assert found["state_type"] == "RUNNING"
    assert runs(stage)
    # the run renews its slot every few minutes, and ends if the server does not know it any more
    slot = found["state"]["state_details"]["deployment_concurrency_lease_id"]
    services.server.call(f"/v2/concurrency_limits/leases/{slot}/renew", {"lease_duration": 300})
    services.let_go()
    services.finish(run)
    assert services.stages_run() == RESUMED
    assert set(services.stages_shown(run).values()) == {"Cached", "Completed"}
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


def test_a_database_that_is_locked_for_seventy_seconds_delays_a_run_and_loses_nothing(services, new_settings):
    before = services.published()
    run, _ = held_run(services, new_settings)
    database = sqlite3.connect(services.home / "prefect.db", timeout=60, isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    services.let_go()
    until = time.monotonic() + 70
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(services.home / "prefect.db", timeout=1).execute("CREATE TABLE probe (value)")
    time.sleep(max(0.0, until - time.monotonic()))
    database.execute("ROLLBACK")
    database.close()
    found = services.wait_for(run, "COMPLETED", "FAILED", "CRASHED")
    services.stages_run()
    if found["state_type"] != "COMPLETED":
        services.retry_when_settled(run)
        services.finish(run)
        assert "train" not in services.stages_run()
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


@pytest.fixture
def bucket_behind_a_proxy(services, bucket, s3_environment, monkeypatch):
    """Let a worker publish to a bucket that only a proxy can reach; afterwards publish to the directory again."""
    proxy, directory = FaultyProxy(s3_environment), services.store
    services.store = f"s3://{bucket}/releases"
    services.kill_worker(services.workers[0])
    worker = services.start_worker({**s3_variables(proxy.url), "SRPO_STORE": services.store})
    yield proxy
    services.kill_worker(worker)
    services.start_worker()
    services.store = directory
    proxy.close()


def test_a_store_that_cannot_be_reached_for_a_minute_gets_the_release_once(
    services, new_settings, bucket_behind_a_proxy
):
    before = services.published()
    run, _ = held_run(services, new_settings, "quantize")
    bucket_behind_a_proxy.fault = lambda request, send: None
    services.let_go()
    services.wait_until(lambda: services.stages_shown(run).get("publish") == "Running")
    time.sleep(60)
    assert services.published() == before
    bucket_behind_a_proxy.fault = honest
    found = services.wait_for(run, *ENDED)
    services.stages_run()
    if found["state_type"] != "COMPLETED":
        assert found["state_type"] == "FAILED"
        services.retry(run)
        services.finish(run)
        assert services.stages_run() == []
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


def test_of_two_overlapping_nightly_runs_the_second_waits_and_then_finds_every_stage_cached(
    services, new_settings
):
    """With two workers, as on two machines with one checkout."""
    before = services.published()
    services.start_worker()
    first, _ = held_run(services, new_settings)
    second = services.start_run(**new_settings)
    waiting = services.server.wait(
        f"/flow_runs/{second}", None, lambda run: run["state_name"] == "AwaitingConcurrencySlot", PATIENCE
    )
    assert waiting["state_type"] == "SCHEDULED"
    assert services.slots_in_use() == 1
    services.let_go()
    services.finish(first)
    services.finish(second)
    assert services.stages_run() == RESUMED
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


def test_after_a_reboot_the_same_services_and_a_retry_complete_the_run(services, new_settings):
    """Everything is killed at once; its files stay, with process ids that other processes have by then."""
    before = services.published()
    run, stage = held_run(services, new_settings)
    (workspace,) = services.live_workspaces()
    process = services.flow_process(run)
    services.kill_all([process, stage])
    services.leave_stale_files(workspace, pid=os.getpid())
    services.let_go()
    services.start_server()
    assert services.server.call(f"/flow_runs/{run}")["state_type"] == "RUNNING"
    services.start_worker()
    services.finish(services.start_run("align/align-on-new-data", publish=False))
    assert services.server.call(f"/flow_runs/{run}")["state_type"] == "CRASHED"
    services.stages_run()
    services.retry(run)
    services.finish(run)
    assert services.stages_run() == RESUMED
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0


@pytest.mark.parametrize("fault", ["kill -9", "cancelled"])
def test_a_fault_in_any_stage_ends_the_run_truly_and_the_next_run_resumes_with_that_stage(services, fault):
    """The settings are new in stage ingest, so each stage is run, and held, once."""
    services.number_of_settings += 1
    settings = {"patch": {"ingest": {"max_bad_share": services.number_of_settings / 1000}}}
    before, shown = services.published(), []
    for stage in STAGES:
        run, process = held_run(services, settings, stage)
        if fault == "cancelled":
            services.cancel(run)
        else:
            process.kill()
        found = services.wait_for(run, *ENDED)
        shown.append((stage, found["state_type"]))
        assert ended([process], 60)
        assert fault == "cancelled" or f"stage {stage}: " in found["state"]["message"]
        services.wait_until(lambda run=run: nothing_is_shown_as_running(services, run))
        services.wait_until(lambda: not services.live_workspaces())
        services.let_go()
    assert shown == [(stage, "CANCELLED" if fault == "cancelled" else "FAILED") for stage in STAGES]
    ran = services.stages_run()
    assert ran == [
        name
        for stage in STAGES
        for name in ([stage] if stage == STAGES[0] else [STAGES[STAGES.index(stage) - 1], stage])
    ]
    assert services.published() == before
    services.finish(services.start_run(**settings))
    assert services.stages_run() == [STAGES[-1]]
    assert one_more(before, services.published())
    assert services.slots_in_use() == 0
