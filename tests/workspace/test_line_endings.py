"""Under every `core.autocrlf` a clone has the bytes of the repository, which DVC hashes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from srpo_core.workspace.git import list_names

ROOT = Path(__file__).resolve().parents[2]
SMALL = 300_000  # bytes; the larger files are weights and archives, of which the smaller ones are examples


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A repository of the project's smaller files."""
    top = tmp_path_factory.mktemp("repository")
    for name in [*list_names(ROOT, "ls-files", "-z"), ".gitattributes"]:
        if (ROOT / name).is_file() and (ROOT / name).stat().st_size < SMALL:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, top / name)
    (top / "data").mkdir()
    (top / "data/train.json").write_bytes(b'[{"prompt": "a"},\r\n {"prompt": "b"}]\r\n')
    run(top, "init", "--quiet")
    run(top, "-c", "core.autocrlf=false", "add", "--force", ".")
    run(top, "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "first")
    return top


def run(cwd: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("autocrlf", ["true", "input", "false"])
def test_a_clone_has_the_same_bytes_and_no_changes(repository, tmp_path, autocrlf):
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", "--config", f"core.autocrlf={autocrlf}", str(repository), str(clone))
    differing = [
        name
        for name in list_names(repository, "ls-files", "-z")
        if (clone / name).read_bytes() != (repository / name).read_bytes()
    ]
    assert differing == []
    for path in clone.rglob("*.py"):  # so that git compares contents and not only times
        path.touch()
    assert run(clone, "status", "--porcelain") == ""


def test_text_that_an_editor_wrote_with_crlf_is_stored_with_lf_and_data_are_stored_as_they_are(
    repository, tmp_path
):
    clone = tmp_path / "clone"
    run(tmp_path, "clone", "--quiet", str(repository), str(clone))
    for name in ("params.yaml", "srpo_core/errors.py", "assets/tiny/hpd/benchmark/food.json"):
        (clone / name).write_bytes((repository / name).read_bytes().replace(b"\n", b"\r\n"))
    changed = run(clone, "-c", "core.safecrlf=false", "diff", "--name-only").split()
    assert changed == ["assets/tiny/hpd/benchmark/food.json"]
    assert run(clone, "show", "HEAD:data/train.json").count("\n") == 2
