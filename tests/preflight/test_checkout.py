"""The doctor finds, before a run, each fault of the git checkout and of the YAML files that would stop the run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.config import load_settings
from srpo_core.preflight.checkout import check_checkout
from srpo_core.preflight.doctor import CHECKS

ROOT = Path(__file__).resolve().parents[2]
TINY = load_settings(ROOT / "profiles/tiny.yaml")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The project's own directory, without git."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    top = tmp_path / "project"
    shutil.copytree(ROOT / "profiles", top / "profiles")
    for name in ("params.yaml", "dvc.yaml", "models.lock", ".gitignore"):
        shutil.copyfile(ROOT / name, top / name)
    monkeypatch.chdir(top)
    return top


@pytest.fixture
def checkout(project) -> Path:
    git(project, "init", "--quiet", "-b", "main")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "-m", "first")
    return project


def git(cwd: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


def findings(source: str = TINY.ingest.source) -> list[tuple[bool, str]]:
    settings = TINY.model_copy(update={"ingest": TINY.ingest.model_copy(update={"source": source})})
    return list(check_checkout(settings))


def test_the_doctor_runs_the_check():
    assert CHECKS["checkout"] is check_checkout


def test_a_clean_checkout_has_one_good_line(checkout):
    assert findings() == [(True, f"{checkout}: branch main")]


def test_an_unpacked_archive_and_a_checkout_without_a_commit_are_found(project):
    assert [good for good, _ in findings()] == [False]
    assert "is not a git checkout" in findings()[0][1]
    git(project, "init", "--quiet")
    assert "has no commit yet" in findings()[0][1]


def test_what_a_run_leaves_out_is_said_and_is_no_fault(checkout):
    with (checkout / "model.dat").open("wb") as file:
        file.truncate(300_000_000)
    (line,) = findings()
    assert line[0]
    assert "left out of the run: model.dat (300 MB)" in line[1]


@pytest.mark.parametrize(
    ("source", "fault"),
    [("../hpd", "is outside the checkout"), ("~/hpd", "begins with '~'"), ("broken", "is a link to nowhere")],
)
def test_an_input_that_a_run_cannot_see_is_found(checkout, source, fault):
    (checkout / "broken").symlink_to("nowhere")
    (bad,) = [detail for good, detail in findings(source) if not good]
    assert bad.startswith(f"ingest.source: {source} ")
    assert fault in bad


def test_line_endings_of_a_clone_that_git_converted_are_found(checkout):
    (checkout / "dvc.yaml").write_bytes((checkout / "dvc.yaml").read_bytes().replace(b"\n", b"\r\n"))
    (bad,) = [detail for good, detail in findings() if not good]
    assert bad.startswith("1 files have CRLF line endings here and LF in git, first dvc.yaml")


@pytest.mark.parametrize(
    "name", ["dvc.yaml", "dvc.lock", "models.lock", "params.yaml", "profiles/flux1_dev.yaml", "data/hpd.dvc"]
)
def test_a_key_that_is_there_twice_in_any_yaml_file_is_found_with_its_line(checkout, name):
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("a: 1\nb: 2\na: 3\n")
    (bad,) = [detail for good, detail in findings() if not good]
    assert f"{name}, line 3: the key 'a' is there twice, first in line 1" in bad


def test_a_damaged_index_of_git_and_a_damaged_lock_of_models_are_found_both(checkout):
    (checkout / ".git/index").write_bytes(b"not an index")
    (checkout / "models.lock").write_text('["oops"\n')
    index, lock = findings()
    assert not index[0]
    assert "index file" in index[1]
    assert not lock[0]
    assert lock[1].startswith("models.lock cannot be read: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_a_checkout_of_another_user_is_found_with_gits_advice(checkout):
    os.chown(checkout, 12345, 12345)
    os.chown(checkout / ".git", 12345, 12345)
    (bad,) = [detail for good, detail in findings() if not good]
    assert "git config --global --add safe.directory" in bad
