import os
import subprocess
import sys
import time
from uuid import uuid4

from srpo_core.services.unfinished_runs import end_runs, run_processes

RUN = "PREFECT__FLOW_RUN_ID"
WORKER = """
import os, subprocess, sys, time
flow = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
child = subprocess.Popen(flow, env={**os.environ, "PREFECT__FLOW_RUN_ID": sys.argv[1]}, start_new_session=True)
print(child.wait(), flush=True)
time.sleep(600)
"""


def test_the_processes_of_runs_are_found_by_their_environment():
    run = str(uuid4())
    with subprocess.Popen(["sleep", "600"], env={**os.environ, RUN: run}) as process:
        until = time.monotonic() + 60
        while run not in run_processes() and time.monotonic() < until:  # between fork and exec it has ours
            time.sleep(0.05)
        assert run_processes()[run] == {process.pid}
        process.kill()
    assert run not in run_processes()


def test_the_flows_of_a_worker_are_asked_to_end_and_the_worker_stays():
    run = str(uuid4())
    command = [sys.executable, "-c", WORKER, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        try:
            assert worker.stdout.readline() == "ready\n"
            end_runs(worker.pid)
            assert worker.stdout.readline() == "-15\n"
            assert run not in run_processes()
            assert worker.poll() is None
            end_runs(worker.pid)  # nothing to do
        finally:
            worker.kill()
    end_runs(worker.pid)  # there is no such worker any more
