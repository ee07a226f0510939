"""A run sees the data and weights that the settings name as the checkout does, wherever they are, or says why not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.config import Settings, load_settings
from srpo_core.errors import ConfigError
from srpo_core.release.provenance import git_state
from srpo_core.workspace.git import git
from srpo_core.workspace.inputs import input_paths, link_inputs, require_inputs
from srpo_core.workspace.reproduce import reproduce
from srpo_core.workspace.worktree import Workspace, has_changed, open_workspace

ROOT = Path(__file__).resolve().parents[2]
TINY = load_settings(ROOT / "profiles/tiny.yaml")
DVC_YAML = """\
stages:
  ingest:
    cmd: mkdir -p runs && cat ${ingest.source}/train.json ${ingest.source}/benchmark/a.json > runs/read
    deps: ["${ingest.source}"]
    outs: [runs/read]
"""


def commit(path: Path) -> Path:
    for words in (["init", "--quiet", "-b", "main"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words], cwd=path, check=True
        )
    return path


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("GIT_", "SRPO_"))]:
        monkeypatch.delenv(name)
    top = tmp_path / "checkout"
    for name in ("params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, top / name)
    (top / "dvc.yaml").write_text(DVC_YAML)
    return commit(top)


def write_data(path: Path) -> Path:
    (path / "benchmark").mkdir(parents=True)
    (path / "train.json").write_text("train")
    (path / "benchmark/a.json").write_text("benchmark")
    return path


def settings_with(source: str) -> Settings:
    return TINY.model_copy(update={"ingest": TINY.ingest.model_copy(update={"source": source})})


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name not in (".git", "images.tar"))


def read_in(workspace: Workspace, source: str) -> str:
    """Return what a stage reads of the data in a workspace."""
    return "".join(
        (workspace.path / source / name).read_text() for name in ("train.json", "benchmark/a.json")
    )


def as_nested_repository(checkout, tmp_path):
    commit(write_data(checkout / "data/hpd"))


def as_repository_without_a_commit(checkout, tmp_path):
    subprocess.run(["git", "init", "--quiet", str(write_data(checkout / "data/hpd"))], check=True)


def as_a_link_to_an_ignored_directory(checkout, tmp_path):
    write_data(checkout / "versions/v1")
    (checkout / ".git/info/exclude").write_text("versions/\n")
    (checkout / "data").mkdir()
    (checkout / "data/hpd").symlink_to("../versions/v1")


def as_submodule(checkout, tmp_path):
    commit(write_data(tmp_path / "hpd"))
    add = ["submodule", "--quiet", "add", str(tmp_path / "hpd"), "data/hpd"]
    git(checkout, "-c", "protocol.file.allow=always", *add)
    git(checkout, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "data")


def as_relative_link(checkout, tmp_path):
    write_data(tmp_path / "elsewhere/hpd")
    (checkout / "data").mkdir()
    (checkout / "data/hpd").symlink_to("../../elsewhere/hpd")


def as_committed_relative_link(checkout, tmp_path):
    as_relative_link(checkout, tmp_path)
    git(checkout, "add", "data/hpd")
    git(checkout, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "link")


def behind_a_linked_directory(checkout, tmp_path):
    write_data(tmp_path / "elsewhere/hpd")
    (checkout / "data").symlink_to("../elsewhere")


def with_linked_files(checkout, tmp_path):
    write_data(checkout / "data/hpd")
    for name in ("train.json", "benchmark/a.json"):
        (tmp_path / Path(name).name).write_text((checkout / "data/hpd" / name).read_text())
        (checkout / "data/hpd" / name).unlink()
        (checkout / "data/hpd" / name).symlink_to(
            os.path.relpath(tmp_path, (checkout / "data/hpd" / name).parent) + f"/{Path(name).name}"
        )


def as_ignored_directory(checkout, tmp_path):
    write_data(checkout / "data/hpd")
    (checkout / ".git/info/exclude").write_text("data/\n")


def with_ignored_files(checkout, tmp_path):
    write_data(checkout / "data/hpd")
    (checkout / ".git/info/exclude").write_text("benchmark/\n")


def as_untracked_directory(checkout, tmp_path):
    write_data(checkout / "data/hpd")


def with_a_large_file(checkout, tmp_path):
    write_data(checkout / "data/hpd")
    with (checkout / "data/hpd/images.tar").open("wb") as file:
        file.truncate(60_000_000)


WAYS = [
    as_nested_repository,
    as_repository_without_a_commit,
    as_submodule,
    as_a_link_to_an_ignored_directory,
    as_relative_link,
    as_committed_relative_link,
    behind_a_linked_directory,
    with_linked_files,
    as_ignored_directory,
    with_ignored_files,
    as_untracked_directory,
    with_a_large_file,
]


@pytest.mark.parametrize("place_data", WAYS)
def test_a_run_reads_data_wherever_the_checkout_has_them(checkout, tmp_path, place_data):
    place_data(checkout, tmp_path)
    settings = settings_with("data/hpd")
    require_inputs(checkout, settings)
    with open_workspace(checkout) as run:
        link_inputs(run, input_paths(settings).values())
        assert read_in(run, "data/hpd") == "trainbenchmark"
        assert names_in(run.path / "data/hpd") == names_in(checkout / "data/hpd")
        assert link_inputs(run, input_paths(settings).values()) == [], (
            "a second time there is nothing to link"
        )
        assert not has_changed(run)
        assert git_state(run.path)["diff"] is None, "a link is no change that a release would record"


def test_when_a_workspace_is_removed_what_its_links_lead_to_stays(checkout, tmp_path):
    as_ignored_directory(checkout, tmp_path)
    with open_workspace(checkout) as first:
        assert link_inputs(first, ["data/hpd"]) == ["data/hpd"]
    with open_workspace(checkout, keep=1):
        assert not first.path.exists()
    assert names_in(checkout / "data/hpd") == ["benchmark", "train.json"]


@pytest.mark.pipeline
@pytest.mark.parametrize("place_data", [as_relative_link, with_ignored_files])
def test_dvc_hashes_linked_data_as_it_hashes_them_in_the_checkout(checkout, tmp_path, place_data):
    place_data(checkout, tmp_path)
    values = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(values.replace(TINY.ingest.source, "data/hpd"))
    with open_workspace(checkout) as run:
        link_inputs(run, ["data/hpd"])
        reproduce(run, "ingest", str)
        lock = (run.path / "dvc.lock").read_bytes()
        subprocess.run(["dvc", "repro", "--quiet"], cwd=checkout, check=True, env=run.environment())
    assert (checkout / "dvc.lock").read_bytes() == lock
    assert (checkout / "runs/read").read_text() == "trainbenchmark"


def test_a_run_of_a_revision_gets_ignored_data_but_nothing_is_added_to_what_the_revision_has(checkout):
    write_data(checkout / "data/hpd")
    git(checkout, "add", "data/hpd/train.json")
    git(checkout, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "data")
    (checkout / ".git/info/exclude").write_text("data/all\n")
    write_data(checkout / "data/all")
    for source, names in (("data/hpd", ["train.json"]), ("data/all", ["benchmark", "train.json"])):
        with open_workspace(checkout, revision="HEAD") as run:
            link_inputs(run, [source], revision="HEAD")
            assert names_in(run.path / source) == names


def test_data_that_dvc_tracks_are_not_linked_because_a_pull_would_write_through_the_link(checkout):
    write_data(checkout / "data/hpd")
    (checkout / "data/hpd.dvc").write_text("outs:\n- {md5: 0123.dir, path: hpd}\n")
    (checkout / "data/.gitignore").write_text("/hpd\n")
    with open_workspace(checkout) as run:
        assert link_inputs(run, ["data/hpd"]) == []
        assert not (run.path / "data/hpd").exists()


@pytest.mark.pipeline
def test_an_absolute_path_outside_the_checkout_is_read_where_it_is(checkout, tmp_path):
    source = str(write_data(tmp_path / "hpd"))
    require_inputs(checkout, settings_with(source))
    values = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(values.replace(TINY.ingest.source, source))
    with open_workspace(checkout) as run:
        assert link_inputs(run, [source]) == []
        reproduce(run, "ingest", str)
        assert (run.path / "runs/read").read_text() == "trainbenchmark"


@pytest.mark.parametrize("given", ["../hpd", "data/../../hpd", "./../hpd/"])
def test_a_relative_path_outside_the_checkout_is_refused_before_the_run_with_the_path_to_write(
    checkout, tmp_path, given
):
    write_data(tmp_path / "hpd")
    for revision in (None, "HEAD"):
        with pytest.raises(ConfigError) as caught:
            require_inputs(checkout, settings_with(given), revision=revision)
        assert str(caught.value).startswith(f"ingest.source: {given} is outside the checkout")
        assert str(caught.value).endswith(f"write {tmp_path}/hpd")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "data/none",
            "ingest.source: data/none is missing: check the path, or make a version with 'srpo data'",
        ),
        ("~/hpd", "ingest.source: ~/hpd begins with '~', which is not expanded here: write the whole path"),
        ("data/broken", "ingest.source: data/broken is a link to nowhere, which does not exist"),
    ],
)
def test_a_missing_input_is_reported_before_the_run(checkout, given, message):
    (checkout / "data").mkdir()
    (checkout / "data/broken").symlink_to("nowhere")
    with pytest.raises(ConfigError) as caught:
        require_inputs(checkout, settings_with(given))
    assert str(caught.value).startswith(message)


def test_data_of_a_remote_and_data_that_dvc_tracks_need_not_be_here(checkout):
    require_inputs(checkout, settings_with("s3://bucket/hpd"))
    (checkout / "data").mkdir()
    (checkout / "data/hpd.dvc").write_text("outs:\n- {md5: 0123.dir, path: hpd}\n")
    require_inputs(checkout, settings_with("data/hpd"))


def test_every_path_of_data_and_weights_is_among_the_inputs():
    full = load_settings(ROOT / "profiles/flux1_dev.yaml")
    assert input_paths(full) == {
        "ingest.source": "data/hpd",
        "model.path": "models/flux1_dev",
        "rewards[0].path": "models/hps_v2_1",
        "select_judge.path": "models/clip_vit_h_14",
        "judge.path": "models/pick_score",
        "evaluate.scorers.alignment.path": "models/clip_vit_l_14",
    }
