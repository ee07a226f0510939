"""What only the user can read in a checkout, others cannot read in what a run makes of it."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from srpo_core.errors import ConfigError
from srpo_core.workspace.snapshot import checkout_snapshot
from srpo_core.workspace.worktree import open_workspace

SECRET = "plantedSECRET0123456789"


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout with DVC's configuration, and with a secret in each file that the repository does not have."""
    for name in ("SRPO_HOME", "GIT_DIR", "GIT_INDEX_FILE", "DVC_SITE_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    top = tmp_path / "checkout"
    (top / ".dvc").mkdir(parents=True)
    (top / ".dvc/config").write_text("[core]\n    site_cache_dir = .srpo/dvc\n")
    (top / ".dvc/.gitignore").write_text("/config.local\n")
    (top / ".gitignore").write_text("/.srpo\n")
    (top / "kept.txt").write_text("committed\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *identity, *words], cwd=top, check=True)
    for name in (".env", "notes/password.txt", ".dvc/config.local"):
        file = top / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"['remote \"own\"']\n    url = s3://b\n    secret_access_key = {SECRET}\n")
        file.chmod(0o600)
    return top


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def readable_by_others(root: Path) -> list[str]:
    """Return the files below a directory that hold the secret and that another user can open."""
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if mode(Path(directory, name)) & 0o001]
        for name in files:
            path = Path(directory, name)
            if mode(path) & 0o044 and SECRET in content(path):
                found.append(str(path))
    return found


def content(path: Path) -> str:
    if path.parent.parent.name == "objects":
        name = path.parent.name + path.name
        shown = subprocess.run(
            ["git", "cat-file", "-p", name], cwd=path.parents[2], capture_output=True, check=True
        )
        return shown.stdout.decode(errors="replace")
    return path.read_bytes().decode(errors="replace")


def test_no_file_that_a_run_makes_shows_a_secret_to_another_user(checkout):
    with open_workspace(checkout) as run:
        assert SECRET in (run.path / ".env").read_text()
        assert readable_by_others(checkout) == []
        (checkout / ".srpo").chmod(0o755)  # also without the home's own mode
        run.path.parent.chmod(0o755)
        assert readable_by_others(checkout) == []
        for name in (".env", "notes/password.txt", ".dvc/config.local"):
            assert mode(run.path / name) == 0o600, name


def test_the_directories_of_gits_objects_stay_open_and_so_do_objects_of_files_that_others_can_read(checkout):
    (checkout / "public.txt").write_text("for everybody")
    (checkout / "public.txt").chmod(0o644)
    checkout_snapshot(checkout)
    objects = checkout / ".git/objects"
    modes = {mode(path) for path in objects.iterdir()}
    assert modes == {mode(objects)}
    name = subprocess.run(
        ["git", "hash-object", "public.txt"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert mode(objects / name[:2] / name[2:]) & 0o044


def test_without_a_local_configuration_the_one_that_a_run_makes_is_private(checkout):
    (checkout / ".dvc/config.local").unlink()
    with open_workspace(checkout) as run:
        assert mode(run.path / ".dvc/config.local") == 0o600


def test_the_home_of_runs_is_closed_to_others_also_if_it_was_open(checkout):
    (checkout / ".srpo").mkdir(mode=0o755)
    with open_workspace(checkout) as run:
        assert mode(run.home) == 0o700


def test_a_home_of_another_user_is_refused(checkout, monkeypatch):
    (checkout / ".srpo").mkdir()
    someone = os.geteuid() + 1
    monkeypatch.setattr("os.geteuid", lambda: someone)
    with (
        pytest.raises(
            ConfigError, match=rf"\.srpo belongs to user {someone - 1} and not to you \(user {someone}\)"
        ),
        open_workspace(checkout),
    ):
        pass
