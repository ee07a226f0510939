"""DVC's configuration of a workspace, in paths with any letter, and damaged ones in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.config import Config
from dvc.repo import Repo

from srpo_core.errors import ConfigError
from srpo_core.workspace.dvc_config import require_config, share_config

LETTERS = 'Prüfstand ß 日本, #1 "x"'
CONFIG = "[core]\n    site_cache_dir = .srpo/dvc\n    remote = default\n['remote \"default\"']\n    url = ../../remote\n"


@pytest.fixture(params=["plain", LETTERS])
def checkout(tmp_path, monkeypatch, request) -> Path:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)
    top = tmp_path / request.param / "checkout"
    (top / ".dvc").mkdir(parents=True)
    (top / ".dvc/config").write_text(CONFIG)
    subprocess.run(["git", "init", "--quiet"], cwd=top, check=True)
    return top


@pytest.fixture
def workspace(checkout) -> Path:
    path = checkout / ".srpo/runs/1/workspace"
    (path / ".dvc").mkdir(parents=True)
    (path / ".dvc/config").write_text(CONFIG)
    subprocess.run(["git", "init", "--quiet"], cwd=path, check=True)
    return path


def opened(workspace, tmp_path):
    with Repo(str(workspace), config={"core": {"site_cache_dir": str(tmp_path / "site")}}) as repo:
        return repo.cache.local.path, {name: dict(one) for name, one in repo.config["remote"].items()}


def test_a_workspace_has_the_cache_and_the_remotes_of_its_checkout(checkout, workspace, tmp_path):
    share_config(checkout, workspace, tmp_path / "site")
    cache, remotes = opened(workspace, tmp_path)
    assert cache == str(checkout / ".dvc/cache/files/md5")
    assert {name: one["url"] for name, one in remotes.items()} == {"default": str(checkout.parent / "remote")}
    assert (workspace / ".dvc/config.local").stat().st_mode & 0o777 == 0o600


def test_the_local_configuration_is_kept_with_relative_paths_of_the_checkout(checkout, workspace, tmp_path):
    (checkout / ".dvc/config.local").write_text(
        '[\'remote "own"\']\n    url = s3://bucket/größe\n    configpath = keys.ini\n    secret_access_key = "a,b\'#c%d"\n',
        encoding="utf-8",
    )
    share_config(checkout, workspace, tmp_path / "site")
    _, remotes = opened(workspace, tmp_path)
    own = {
        "url": "s3://bucket/größe",
        "configpath": str(checkout / ".dvc/keys.ini"),
        "secret_access_key": "a,b'#c%d",
    }
    assert remotes["own"] == {**remotes["own"], **own}


def test_the_command_dvc_reads_the_workspace_in_the_locale_c(checkout, workspace, tmp_path):
    from srpo_core.runtime.machine import text_environment

    share_config(checkout, workspace, tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "cache.dir"],
        cwd=workspace,
        env={**os.environ, "LC_ALL": "C", **text_environment(), "DVC_SITE_CACHE_DIR": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.strip() == str(checkout / ".dvc/cache"), done.stderr


DAMAGED = {
    "no section": b"remote = \n[[\n",
    "an unknown section": b"[colour]\n    red = 1\n",
    "a wrong type": b"[core]\n    autostage = perhaps\n",
    "not text": b"\xff\xfe\x00[core]\n",
    "a value that refers to nothing": b"[core]\n    remote = ab%(z)scd\n",
    "a conflict of git": b"<<<<<<< HEAD\n[core]\n=======\n[core]\n>>>>>>> other\n",
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("name", ["config", "config.local"])
def test_a_damaged_configuration_gives_one_line_that_names_the_file_and_what_to_do(
    checkout, workspace, tmp_path, name, kind
):
    (checkout / ".dvc" / name).write_bytes(DAMAGED[kind])
    remedy = "restore it with git" if name == "config" else "correct or remove it"
    with pytest.raises(ConfigError) as caught:
        share_config(checkout, workspace, tmp_path / "site")
    line = str(caught.value)
    assert line.startswith(f"{checkout / '.dvc' / name} is not a configuration that DVC can read (")
    assert line.endswith(f"): {remedy}")
    assert "\n" not in line


SECRETS = {
    "    secret_access_key: wJalr-secret": "line 3: write KEY = VALUE",
    "    secret_access_key: wJalr-secret\n    wJalr-secret\n[": "line 3: write KEY = VALUE",
    "    wJalr-secret": "line 3: write KEY = VALUE",
    "    secret_access_key = 'wJalr-secret": "line 3: write KEY = VALUE",
    "    secret_access_key = x\n    secret_access_key = wJalr-secret": "line 4: write KEY = VALUE",
    "    secret_access_key = wJalr%(-secret)s": "line 3: DVC takes %(NAME)s for a reference to an option NAME",
    "    secret_access_key = %(b)s\n    b = %(secret_access_key)s": "line 3, 4: DVC takes %(NAME)s",
    "    port = wJalr-secret": "extra keys not allowed @ data['remote']['own']['port']",
    "    ssl_verify = x\n    no_traverse = wJalr-secret": "data['remote']['own']['no_traverse']",
}


@pytest.mark.parametrize("text", SECRETS)
def test_a_damaged_line_is_named_by_its_number_because_it_may_hold_a_secret(checkout, text):
    (checkout / ".dvc/config.local").write_text(f"['remote \"own\"']\n    url = s3://bucket\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        require_config(checkout)
    assert SECRETS[text] in str(caught.value)
    assert "wJalr" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_configuration_of_the_user_is_named_too(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path))
    (tmp_path / "config").write_text("nonsense\n[")
    with pytest.raises(ConfigError, match="correct or remove it"):
        require_config(checkout)


def test_a_checkout_without_configuration_is_named(checkout):
    (checkout / ".dvc" / Config.CONFIG).unlink()
    with pytest.raises(ConfigError, match=r"has no \.dvc/config: restore it with git"):
        require_config(checkout)
