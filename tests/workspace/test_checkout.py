"""Each kind of checkout works, or one line says what the directory is and what to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.errors import ConfigError
from srpo_core.preflight.checkout import describe
from srpo_core.workspace import data_versions
from srpo_core.workspace.checkout import require_checkout
from srpo_core.workspace.worktree import has_changed, open_workspace

ROOT = Path(__file__).resolve().parents[2]


def run(cwd: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """The project as an unpacked archive: its files without git."""
    for name in [name for name in os.environ if name.startswith(("GIT_", "SRPO_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    top = tmp_path / "project"
    for name in ("params.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, top / name)
    (top / "dvc.yaml").write_text("stages: {one: {cmd: 'true', deps: [kept.txt]}}\n")
    (top / "kept.txt").write_text("kept\n")
    return top


@pytest.fixture
def checkout(archive) -> Path:
    run(archive, "init", "--quiet", "-b", "main")
    run(archive, "add", ".")
    for message in ("first", "second"):
        run(archive, "commit", "--quiet", "--allow-empty", "-m", message)
    return archive


def as_git_worktree(checkout: Path, place: Path) -> Path:
    run(checkout, "worktree", "add", "--quiet", str(place))
    return place


def as_detached_head(checkout: Path, place: Path) -> Path:
    run(checkout, "checkout", "--quiet", "--detach")
    return checkout


def as_shallow_clone(checkout: Path, place: Path) -> Path:
    run(checkout, "clone", "--quiet", "--depth", "1", f"file://{checkout}", str(place))
    return place


def as_submodule(checkout: Path, place: Path) -> Path:
    place.mkdir()
    run(place, "init", "--quiet")
    run(place, "submodule", "add", str(checkout), "inside")
    return place / "inside"


def as_worktree_of_a_bare_repository(checkout: Path, place: Path) -> Path:
    run(checkout, "clone", "--quiet", "--bare", str(checkout), f"{place}.git")
    run(Path(f"{place}.git"), "worktree", "add", "--quiet", str(place))
    return place


KINDS = [
    (as_git_worktree, "branch place, git worktree"),
    (as_detached_head, "no branch (detached HEAD)"),
    (as_shallow_clone, "branch main, shallow clone"),
    (as_submodule, "branch main, submodule"),
    (as_worktree_of_a_bare_repository, "branch place, git worktree"),
]


@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_a_run_and_a_data_version_work_in_each_kind_of_checkout(checkout, tmp_path, make, kind):
    place = make(checkout, tmp_path / "place")
    (place / "kept.txt").write_text("edited\n")
    (place / "new.txt").write_text("untracked\n")
    assert describe(require_checkout(place)) == f"{place}: {kind}"
    with open_workspace(place) as workspace:
        assert (workspace.path / "kept.txt").read_text() == "edited\n"
        assert (workspace.path / "new.txt").read_text() == "untracked\n"
        assert not has_changed(workspace)
    with open_workspace(place, revision="HEAD") as workspace:
        (workspace.path / "data").mkdir()
        (workspace.path / "data/hpd.dvc").write_text("outs:\n- {md5: 0123.dir, path: hpd}\n")
        (workspace.path / "data/.gitignore").write_text("/hpd\n")
        data_versions.commit(workspace, "hpd", "data/hpd/0123", ingest={}, findings={})
        assert data_versions.is_tagged(workspace, "data/hpd/0123")
    with open_workspace(place, revision="data/hpd/0123") as workspace:
        assert (workspace.path / "data/hpd.dvc").is_file()
        assert data_versions.is_tag_of_head(workspace, "data/hpd/0123") is False


def test_whether_a_tag_is_of_this_commit_is_answered_in_a_shallow_clone_that_lacks_the_tags_parent(
    checkout, tmp_path
):
    run(checkout, "tag", "old")
    with open_workspace(as_shallow_clone(checkout, tmp_path / "place")) as workspace:
        assert data_versions.is_tag_of_head(workspace, "old") is False


def refusal(directory: Path, revision: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught, open_workspace(directory, revision=revision):
        pass
    assert "\n" not in str(caught.value)
    assert not (directory / ".srpo").exists()
    return str(caught.value)


def test_an_unpacked_archive_is_told_how_to_become_a_checkout_and_does(archive):
    line = refusal(archive)
    assert "is not a git checkout" in line
    assert "clone the repository with git, or, if this is an unpacked archive, run 'git init'" in line
    run(archive, "init", "--quiet")
    line = refusal(archive)
    assert "has no commit yet, and a run starts from one: run 'git add .' and 'git commit -m import'" in line
    run(archive, "add", ".")
    run(archive, "commit", "--quiet", "-m", "import")
    with open_workspace(archive) as workspace:
        assert (workspace.path / "kept.txt").is_file()


def test_a_project_inside_another_repository_is_refused_because_a_run_would_copy_all_of_that(
    archive, monkeypatch
):
    monkeypatch.delenv("GIT_CEILING_DIRECTORIES")
    run(archive.parent, "init", "--quiet")
    run(archive.parent, "add", ".")
    run(archive.parent, "commit", "--quiet", "-m", "first")
    line = refusal(archive)
    assert line.startswith(
        f"{archive} is a subdirectory of the git repository {archive.parent}, all of which"
    )
    assert "clone the project as a repository of its own, or add it there as a submodule" in line


def test_a_directory_of_the_checkout_with_a_graph_of_its_own_names_the_top(checkout):
    (checkout / "recipe").mkdir()
    (checkout / "recipe/dvc.yaml").write_text("stages: {}\n")
    assert (
        refusal(checkout / "recipe")
        == f"{checkout / 'recipe'} is a directory of the checkout {checkout}: change to its top"
    )


def test_a_bare_repository_and_gits_own_directory_are_named(checkout, tmp_path):
    run(checkout, "clone", "--quiet", "--bare", str(checkout), str(tmp_path / "bare.git"))
    assert (
        f"is a bare repository, which has no files: 'git clone {tmp_path}/bare.git' makes a checkout"
        in refusal(tmp_path / "bare.git")
    )
    assert "is inside git's own directory: change to the checkout" in refusal(checkout / ".git")


def test_an_unknown_revision_in_a_shallow_clone_names_the_command_that_fetches_the_others(checkout, tmp_path):
    run(checkout, "tag", "v1", "HEAD^")
    place = as_shallow_clone(checkout, tmp_path / "place")
    assert "has no revision 'v1'" in refusal(place, "v1")
    assert refusal(place, "v1").endswith(
        "this is a shallow clone: 'git fetch --unshallow --tags' brings the others"
    )


@pytest.mark.parametrize("of", ["archive", "checkout"])
def test_a_broken_configuration_of_git_is_named_by_its_file_or_variable(request, tmp_path, monkeypatch, of):
    place = request.getfixturevalue(of)
    (tmp_path / "gitconfig").write_text("[user\nname = x\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    line = refusal(place)
    assert f"fatal: bad config line 1 in file {tmp_path}/gitconfig" in line
    assert line.endswith("Correct the file or the variable that git names")


def test_a_broken_variable_of_git_is_named(checkout, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "many")
    assert "bogus count in GIT_CONFIG_COUNT" in refusal(checkout)


@pytest.mark.parametrize(
    "name", [b"blank at the end ", b"new line at the end\n", "pr\u00fcf 日本".encode()], ids=ascii
)
def test_a_checkout_at_any_path_of_utf_8_is_found_and_a_directory_of_it_named(checkout, name):
    place = checkout.rename(checkout.parent / os.fsdecode(name))
    assert require_checkout(place) == place
    (place / "recipe").mkdir()
    (place / "recipe/dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(ConfigError, match="is a directory of the checkout"):
        require_checkout(place / "recipe")


def test_a_path_that_is_not_utf_8_is_named_because_dvc_cannot_write_it_down(checkout):
    place = checkout.rename(checkout.parent / os.fsdecode(b"caf\xe9"))
    line = refusal(place)
    assert f"{checkout.parent}/caf\\xe9, has bytes that are not UTF-8" in line
    assert line.endswith("move the checkout to another path")


def test_without_git_and_without_the_directory_no_file_of_git_is_blamed(archive, monkeypatch):
    assert refusal(archive / "none") == f"{archive / 'none'} is not a directory, so 'git' cannot run there"
    monkeypatch.setenv("PATH", "/nowhere")
    assert refusal(archive) == "'git' was not found: install it, or add it to PATH"


def test_a_worktree_whose_repository_is_gone_gives_gits_reason(checkout, tmp_path):
    place = as_git_worktree(checkout, tmp_path / "place")
    shutil.rmtree(checkout / ".git")
    with pytest.raises(ConfigError, match=r"failed: fatal: not a git repository: .*/\.git/worktrees/place"):
        require_checkout(place)
