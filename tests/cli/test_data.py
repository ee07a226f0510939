"""`srpo data SOURCE`: what is checked before a server starts, and what reaches the flow."""

import shlex
from pathlib import Path

import pytest
from standin import make_standin
from typer.testing import CliRunner

import flows.data
import flows.terminal
from srpo_core.cli.app import app
from srpo_core.cli.main import main  # noqa: F401  # registers the commands
from srpo_core.cli.options import parse_changes
from srpo_core.config import patched, write_settings
from srpo_core.errors import ConfigError, DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def flow(monkeypatch):
    """Record the arguments of the flow in place of running it; fails if it is reached where it must not be."""
    calls = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(flows.terminal, "prepare_terminal", lambda: None)
    monkeypatch.setattr(flows.data, "data", lambda **given: calls.append(given) or "data/mine/0123456789ab")
    return calls


def srpo_data(*arguments):
    return CliRunner().invoke(app, ["data", *arguments])


def test_format_and_settings_reach_the_flow_and_the_next_command(flow, tmp_path):
    (tmp_path / "votes.csv").write_text("text,left,right\na,b,c\n")
    columns = "ingest.columns={prompt: text, chosen: left, rejected: right}"
    done = srpo_data(
        str(tmp_path / "votes.csv"),
        "--name",
        "mine",
        "--format",
        "pairs",
        "--set",
        columns,
        "--set",
        "ingest.test_share=0.3",
    )
    assert done.exception is None, done.output
    (given,) = flow
    assert given["format_name"] == "pairs"
    assert given["ingest"] == {
        "columns": {"prompt": "text", "chosen": "left", "rejected": "right"},
        "test_share": 0.3,
    }
    assert done.output.splitlines()[-1] == (
        "next  srpo align --revision data/mine/0123456789ab --set ingest.source=data/mine "
        f"--set '{columns}' --set ingest.test_share=0.3 --set ingest.format=pairs"
    )


def test_the_next_command_for_data_without_pairs_does_not_ask_for_them(flow, tmp_path):
    (tmp_path / "mine.txt").write_text("a cat\n")
    done = srpo_data(str(tmp_path / "mine.txt"), "--format", "prompts")
    assert done.output.splitlines()[-1].endswith(
        "--set ingest.format=prompts --set check_reward.max_pairs=null --set train.rollout.source=online"
    )


def test_a_bucket_is_given_to_the_flow_as_it_is(flow):
    assert srpo_data("s3://bucket/HPDv2").exception is None
    assert flow[0]["source"] == "s3://bucket/HPDv2"


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        (["ymhao/HPDv2"], DataError, "hf download ymhao/HPDv2"),
        (["https://example.org/x.parquet"], DataError, "is a URL"),
        (["nothing"], DataError, "nothing is missing: give a directory with train.json"),
        (["assets", "--format", "hpdv9"], ConfigError, "unknown format of ingest.format 'hpdv9'"),
        (
            ["assets", "--set", "train.steps=3"],
            ConfigError,
            "--set train: 'srpo data' takes settings of ingest",
        ),
        (
            ["assets", "--set", "ingest.format=pairs"],
            ConfigError,
            "--set ingest.format: 'srpo data' takes settings",
        ),
        (
            ["assets", "--format", "pairs", "--set", "ingest.columns={prompt: x}"],
            ConfigError,
            "ingest.columns has prompt: it must have",
        ),
        (["assets", "--set", "ingest.columns={promt: x}"], ConfigError, "ingest.columns.promt"),
    ],
)
def test_what_cannot_work_is_refused_before_the_flow(flow, arguments, error, line):
    done = srpo_data(*arguments)
    assert isinstance(done.exception, error)
    assert line in str(done.exception)
    assert flow == []


def test_settings_that_are_not_committed_reach_the_flow_and_the_next_command(flow, tmp_path, monkeypatch):
    checkout = make_standin(tmp_path / "standin")
    monkeypatch.chdir(checkout)
    write_settings(
        checkout,
        profile=None,
        patch={"seed": 7, "ingest": {"on_bad_record": "quarantine", "max_bad_share": 0.002}},
    )
    done = srpo_data("assets/tiny/hpd", "--set", "ingest.max_bad_share=0.004")
    assert done.exception is None, done.output
    assert flow[0]["ingest"] == {"on_bad_record": "quarantine", "max_bad_share": 0.004}
    words = shlex.split(done.output.splitlines()[-1])
    patch = parse_changes([word for word in words[words.index("--set") :] if word != "--set"])
    assert patched(flow[0]["ingest"], patch["ingest"]) == {
        "on_bad_record": "quarantine",
        "max_bad_share": 0.004,
        "source": "data/hpd",
        "format": "hpdv2",
    }


def test_watch_gives_the_flow_what_was_asked_and_starts_runs_only_on_a_server(flow, monkeypatch):
    import flows.watch

    given = []

    def record(**parameters):
        given.append(parameters)
        return flows.watch.WatchResult("no drift: nothing moved")

    monkeypatch.setattr(flows.watch, "watch", record)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    runner = CliRunner()
    done = runner.invoke(app, ["watch", "--prompts", "new.jsonl", "--set", "ingest.columns={prompt: text}"])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "no drift: nothing moved")
    assert given[0] == {
        "version": None,
        "prompts": "new.jsonl",
        "ingest": {"columns": {"prompt": "text"}},
        "name": "prompts",
        "start": False,
    }
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    for arguments, starts in (([], True), (["--no-start"], False)):
        assert runner.invoke(app, ["watch", *arguments]).exit_code == 0
        assert given[-1]["start"] is starts
    refused = runner.invoke(app, ["watch", "--set", "train.steps=3"])
    assert "--set train: 'srpo watch' takes settings of ingest" in str(refused.exception)
