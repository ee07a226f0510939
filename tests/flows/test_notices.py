"""The hooks of the flows, without a server; tests/flows/test_align.py and test_release.py have messages of whole runs."""

import logging
import re
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_ENABLED,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.states import Crashed, Failed

from flows.align import align
from flows.align_result import AlignResult
from flows.dead_runs import end_shown_tasks
from flows.notices import notify_alarm, notify_failure, notify_verdict, warn_of_channels
from flows.release import gc, promote, releases, verify
from srpo_core.artifacts import TRAIN_OUTCOME, write_json
from srpo_core.errors import ConfigError, DamageError, StageError, StoreError
from srpo_core.release.publishing import Published
from srpo_core.workspace.reproduce import StageResult
from srpo_core.workspace.worktree import Workspace

ROOT = Path(__file__).parents[2]
PREFIX = "Flow run encountered an exception: "


@pytest.fixture(autouse=True)
def _notified(receiver, monkeypatch, tmp_path):
    monkeypatch.setenv("SRPO_NOTIFY", receiver.url)
    monkeypatch.setenv("SRPO_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(ROOT)
    with temporary_settings(
        {PREFECT_LOGGING_TO_API_ENABLED: False, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False},
        restore_defaults={PREFECT_API_URL, PREFECT_UI_URL},
    ):
        yield


def run_of(flow, **parameters):
    return FlowRun(flow_id=uuid4(), name="brave-otter", parameters=parameters)


def failed(error):
    return Failed(data=error, message=f"{PREFIX}{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("flow", "parameters", "state", "title", "cause"),
    [
        (
            align,
            {"profile": "tiny", "patch": {"release": {"name": "other"}, "seed": None}, "revision": None},
            failed(StageError("stage train: NaN at step 7", 4)),
            "failed: other, run brave-otter",
            "stage train: NaN at step 7",
        ),
        (
            align,
            {"profile": "tiny", "patch": {}, "revision": None},
            failed(StageError("stage check_reward: the reward prefers noise", 3)),
            "refused: tiny, run brave-otter",
            "stage check_reward: the reward prefers noise",
        ),
        (
            align,
            {"profile": None, "patch": {}, "revision": "v1"},
            Crashed(message="Flow run process exited with non-zero status code -9."),
            "failed: align, run brave-otter",
            "Flow run process exited with non-zero status code -9.",
        ),
        (
            align,
            {"profile": "none", "patch": {"sead": 1}},
            failed(ConfigError("unknown profile 'none'")),
            "failed: align, run brave-otter",
            "unknown profile 'none'",
        ),
        (
            verify,
            {},
            failed(DamageError("release tiny-1 is damaged")),
            "store damaged: STORE, run brave-otter",
            "release tiny-1 is damaged",
        ),
        (
            gc,
            {"keep": 1},
            failed(StoreError("no bucket")),
            "failed: gc, run brave-otter",
            "no bucket",
        ),
        (
            promote,
            {"version": "tiny-1"},
            failed(ValueError("a defect\nin two lines")),
            "failed: promote, run brave-otter",
            "ValueError: a defect in two lines",
        ),
    ],
)
def test_a_run_that_fails_or_dies_notifies_of_its_cause(
    receiver, tmp_path, flow, parameters, state, title, cause
):
    notify_failure(flow=flow, flow_run=run_of(flow, **parameters), state=state)
    title = f"SRPO {title.replace('STORE', str(tmp_path / 'store'))}"
    assert receiver.titles(1) == [title]
    assert receiver.body(title)[0] == cause


def test_every_flow_that_changes_or_checks_something_has_the_hooks():
    for path in sorted((ROOT / "flows").glob("*.py")):
        for name, options in re.findall(
            r"^@flow\((.*?)\)\ndef (\w+)", path.read_text(), flags=re.MULTILINE | re.DOTALL
        ):
            hooks = ("find_dead_runs", "on_failure", "on_crashed", "end_shown_tasks")
            hooked = all(word in name for word in hooks)
            assert hooked != (options in ("releases", "show", "pull")), options
    assert align.on_failure_hooks == [notify_failure]
    assert align.on_crashed_hooks == [notify_failure, end_shown_tasks]
    assert releases.on_failure_hooks == []


def test_the_link_to_a_run_is_that_of_prefects_page_and_there_is_none_for_a_server_that_ends(receiver):
    run = run_of(align)
    state = Crashed(message="dead")
    with temporary_settings({PREFECT_UI_URL: "https://prefect.example.org"}):
        notify_failure(flow=align, flow_run=run, state=state)
    receiver.titles(1)
    notify_failure(flow=align, flow_run=run, state=state)
    receiver.titles(2)
    bodies = sorted((message["message"] for message in receiver.messages), key=len)
    assert bodies == ["dead", f"dead\nrun: https://prefect.example.org/runs/flow-run/{run.id}"]


def test_the_start_of_a_run_warns_of_each_channel_that_cannot_be_used(receiver, monkeypatch):
    monkeypatch.setenv("SRPO_NOTIFY", f"{receiver.url} slak://plantedSECRET0abc")
    heard = []
    log = logging.getLogger("prefect.flow_runs")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    log.addHandler(handler)
    try:
        warn_of_channels(flow=align, flow_run=run_of(align), state=Crashed())
        for thread in threading.enumerate():
            if thread.name == "srpo-notify":
                thread.join(30)
    finally:
        log.removeHandler(handler)
    (line,) = heard
    assert line.startswith("SRPO_NOTIFY: channel 2 (slak) is no URL that apprise can use")
    assert receiver.messages == []


def test_a_cached_training_notifies_of_no_alarm_again(receiver, tmp_path):
    workspace = Workspace("1", tmp_path, tmp_path, tmp_path, "tree")
    write_json(tmp_path / TRAIN_OUTCOME, {"alarm": {"reason": "by step 8 it is proven"}})
    notify_alarm(workspace, StageResult("train", cached=True, seconds=0.0))
    write_json(tmp_path / TRAIN_OUTCOME, {"alarm": None})
    notify_alarm(workspace, StageResult("train", cached=False, seconds=0.0))
    assert receiver.messages == []


def test_a_version_that_exists_already_is_not_notified_again(receiver, tmp_path):
    result = AlignResult(True, "every rule holds.", tmp_path, {}, "uri", (), tmp_path, home=False)
    notify_verdict(
        "tiny", result, Published("tiny-1", "uri", created=False, alias="candidate", previous=None)
    )
    notify_verdict("tiny", result, None)
    assert receiver.messages == []
