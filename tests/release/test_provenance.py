"""Provenance of a release; test_publishing.py tests the check against dvc.lock."""

import hashlib
import os
import subprocess

import torch

from srpo_core.release.provenance import environment, git_state


def test_the_environment_records_the_hash_of_requirements_lock(tmp_path):
    assert environment(tmp_path)["requirements_lock"] is None
    (tmp_path / "requirements.lock").write_bytes(b"torch==2.9.0\n")
    assert environment(tmp_path)["requirements_lock"] == hashlib.sha256(b"torch==2.9.0\n").hexdigest()


def test_the_environment_describes_the_publishing_machine(tmp_path):
    found = environment(tmp_path)
    assert found["of"] == "the machine that published"
    assert found["cores"] == os.cpu_count()
    assert found["processor"]
    assert 0.1 < found["memory_gb"] < 100_000


def test_the_environment_names_every_gpu(tmp_path):
    gpus = environment(tmp_path)["gpus"]
    assert len(gpus) == torch.cuda.device_count()
    assert all(gpus)


def test_a_cloned_directory_has_the_digest_that_dvc_gives_it(tmp_path):
    """DVC ignores .git, which a model cloned from a hub contains."""
    from dvc.repo import Repo

    from srpo_core.release.provenance import _dvc_md5

    base = tmp_path / "base"
    (base / ".git").mkdir(parents=True)
    (base / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (base / "config.json").write_text("{}")
    (base / "transformer").mkdir()
    (base / "transformer/weights").write_text("1")
    repo = Repo.init(str(tmp_path), no_scm=True)
    (stage,) = repo.add(str(base))
    assert _dvc_md5(base) == stage.outs[0].hash_info.value
    (base / "config.json").write_text("[]")
    assert _dvc_md5(base) != stage.outs[0].hash_info.value


def test_the_recorded_diff_has_no_credentials_of_a_tracked_file(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    config = tmp_path / ".dvc/config"
    config.parent.mkdir()
    config.write_text("[core]\n")
    git("init")
    git("add", "--all")
    git("commit", "--message", "first")
    config.write_text(
        "[core]\n    remote = own\n['remote \"own\"']\n    secret_access_key = pl/anted+SECRET\n"
    )
    diff = git_state(tmp_path)["diff"]
    assert "+    remote = own" in diff
    assert "+    secret_access_key = ***" in diff
    assert "pl/anted" not in diff
