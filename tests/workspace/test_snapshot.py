"""What of a checkout a run gets: large untracked files and repositories inside it are left out, with one line."""

import os
import subprocess
from pathlib import Path

import pytest

from srpo_core.workspace import snapshot
from srpo_core.workspace.git import git, list_names
from srpo_core.workspace.snapshot import LARGE_BYTES, checkout_snapshot, find_untracked

ROOT = Path(__file__).resolve().parents[2]


def init(path: Path, *, commit: bool = True) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "kept.txt").write_text("committed\n")
    words = [["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]]
    for one in words if commit else words[:1]:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *one], cwd=path, check=True
        )
    return path


@pytest.fixture
def checkout(tmp_path) -> Path:
    return init(tmp_path / "checkout")


def write(path: Path, size: int) -> None:
    """Write a file of this size without using the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def files_of(checkout: Path) -> list[str]:
    return list_names(checkout, "ls-tree", "-r", "-z", "--name-only", checkout_snapshot(checkout))


def bytes_of_git(checkout: Path) -> int:
    return sum(path.stat().st_size for path in (checkout / ".git").rglob("*") if path.is_file())


def test_a_large_untracked_file_is_left_out_of_git_and_named_with_its_size(checkout):
    write(checkout / "model-bf16.safetensors", 300_000_000)
    write(checkout / "exact.dat", LARGE_BYTES)
    (checkout / "new.py").write_text("x = 1\n")
    before = bytes_of_git(checkout)
    assert files_of(checkout) == ["exact.dat", "kept.txt", "new.py"]
    assert (
        bytes_of_git(checkout) < before + 500_000
    )  # the zeros of exact.dat take half of it, those of the other would take 1.3 MB
    line = find_untracked(checkout).describe()
    assert line.startswith(
        "left out of the run: model-bf16.safetensors (300 MB). Untracked files above 50 MB"
    )
    assert "\n" not in line


def test_a_large_file_that_git_tracks_is_part_of_a_run(checkout, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGE_BYTES", 1000)
    write(checkout / "added.bin", 1001)
    git(checkout, "add", "added.bin")
    (checkout / "kept.txt").write_text("edited " * 1000)
    tree = checkout_snapshot(checkout)
    assert list_names(checkout, "ls-tree", "-z", "--name-only", tree) == ["added.bin", "kept.txt"]
    assert git(checkout, "cat-file", "-s", f"{tree}:kept.txt") == "7000"


def test_a_private_large_file_is_not_written_either(checkout):
    write(checkout / "weights.dat", LARGE_BYTES + 1)
    (checkout / "weights.dat").chmod(0o600)
    before = bytes_of_git(checkout)
    assert files_of(checkout) == ["kept.txt"]
    assert bytes_of_git(checkout) < before + 10_000


def test_an_untracked_directory_of_many_small_files_that_is_large_together_is_left_out(checkout):
    for number in range(6):
        write(checkout / f"images/part/{number}.jpg", 10_000_000)
    (checkout / "code").mkdir()
    (checkout / "code/a.py").write_text("x = 1\n")
    (checkout / "with_tracked").mkdir()
    (checkout / "with_tracked/t.txt").write_text("t\n")
    git(checkout, "add", "with_tracked")
    (checkout / "with_tracked/u.txt").write_text("u\n")
    assert files_of(checkout) == ["code/a.py", "kept.txt", "with_tracked/t.txt", "with_tracked/u.txt"]
    assert find_untracked(checkout).left_out == ("images/ (60 MB in 6 files)",)


@pytest.mark.parametrize("commit", [True, False], ids=["with a commit", "without a commit"])
def test_a_repository_inside_the_checkout_does_not_stop_a_run_and_is_named(checkout, commit):
    init(checkout / "data/hpd", commit=commit)
    assert files_of(checkout) == ["kept.txt"]
    assert "data/hpd/ (a git repository of its own)" in find_untracked(checkout).describe()


def test_only_the_first_of_many_are_named(checkout):
    for name in "abcde":
        write(checkout / f"{name}.dat", LARGE_BYTES + 1)
    assert "a.dat (50 MB), b.dat (50 MB), c.dat (50 MB) and 2 more." in find_untracked(checkout).describe()


def test_nothing_is_said_if_nothing_is_left_out(checkout):
    (checkout / "new.py").write_text("x = 1\n")
    assert find_untracked(checkout).describe() == ""


def test_names_with_blanks_newlines_and_other_bytes_are_part_of_a_run(checkout):
    names = [
        " begins with a blank",
        "with\nnewline",
        "*",
        ":(exclude)kept.txt",
        b"latin-\xe9".decode(errors="surrogateescape"),
    ]
    for name in names:
        (checkout / name).write_text("x\n")
    (checkout / "link").symlink_to("nowhere")
    assert sorted(files_of(checkout)) == sorted([*names, "kept.txt", "link"])


ODD_PATHS = [b"caf\xe9", b"blank at the end ", b"new\nline", b"new line at the end\n"]


@pytest.mark.parametrize("name", ODD_PATHS, ids=ascii)
def test_a_run_gets_the_files_of_a_git_worktree_at_any_path_of_a_repository_at_any_path(tmp_path, name):
    checkout = init(tmp_path / os.fsdecode(name) / os.fsdecode(name))
    place = tmp_path / os.fsdecode(b"place-" + name)
    git(checkout, "worktree", "add", "--quiet", "--detach", str(place))
    for path in (checkout, place):
        (path / "kept.txt").write_text("edited\n")
        (path / "private.txt").write_text("x\n")
        (path / "private.txt").chmod(0o600)
        assert files_of(path) == ["kept.txt", "private.txt"]


def test_a_checkout_to_which_nothing_was_added_yet_has_its_untracked_files(tmp_path):
    checkout = init(tmp_path / "new", commit=False)
    assert files_of(checkout) == ["kept.txt"]


def test_removed_and_renamed_files_are_removed_and_renamed_in_a_run(checkout):
    git(checkout, "mv", "kept.txt", "moved.txt")
    (checkout / "moved.txt").unlink()
    (checkout / "moved.txt").mkdir()
    (checkout / "moved.txt/inside").write_text("now a directory\n")
    assert files_of(checkout) == ["moved.txt/inside"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "out/x.gguf", "a.pt", "a.ckpt", "pytorch_model.bin", "x/a.pth"]
)
def test_git_ignores_weights_outside_the_directories_of_shipped_ones(checkout, name):
    (checkout / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    write(checkout / name, 10)
    write(checkout / "assets/tiny/family/new/model.safetensors", 10)
    assert find_untracked(checkout).files == (".gitignore", "assets/tiny/family/new/model.safetensors")


def test_git_ignores_no_file_that_the_project_ships():
    assert list_names(ROOT, "ls-files", "--ignored", "--cached", "--exclude-standard", "-z") == []
