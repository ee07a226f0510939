"""The environment of a run works on the machine: home, caches, temporary files, the user's name, proxies."""

import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from srpo_core.errors import ConfigError
from srpo_core.runtime import machine
from srpo_core.runtime.machine import (
    LONGEST_TMPDIR,
    adapt_to_machine,
    can_write,
    fits_sockets,
    machine_environment,
)

NAMED = {"USER": "me"}


@pytest.fixture
def user(tmp_path):
    """A home directory that can be written."""
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


@pytest.fixture
def own(tmp_path):
    """SRPO_HOME, which is not made yet."""
    return tmp_path / "srpo home ü"


@pytest.fixture
def read_only(user, monkeypatch):
    """The home directory can be read and not written; as root only a mount could do that, so access(2) is replaced."""
    real = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, how: real(path, how) and not (how & os.W_OK and Path(path).is_relative_to(user)),
    )
    return user


@pytest.fixture
def nameless(monkeypatch):
    """The user id has no entry, as the random one of a container."""

    def missing(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", missing)


def test_nothing_changes_on_a_machine_where_everything_works(user, own):
    environment = {"HOME": str(user), "TMPDIR": "/tmp", **NAMED}
    assert machine_environment(environment, own) == environment
    assert not own.exists()


@pytest.mark.parametrize("kind", ["missing", "a file", "below a file", "relative", "unset", "empty"])
def test_a_home_that_cannot_be_read_is_replaced_by_one_below_srpo_home(tmp_path, own, nameless, kind):
    (tmp_path / "file").touch()
    value = {
        "missing": str(tmp_path / "none"),
        "a file": str(tmp_path / "file"),
        "below a file": str(tmp_path / "file/x"),
        "relative": "srpo",
        "empty": "",
    }.get(kind)
    environment = NAMED | ({} if value is None else {"HOME": value})
    adapted = machine_environment(environment, own)
    assert adapted["HOME"] == str(own / "user")
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert can_write(Path(adapted["HOME"]))
    assert "XDG_CACHE_HOME" not in adapted, "caches are below the new home"


def test_without_home_the_directory_of_the_users_entry_counts(user, own, monkeypatch):
    entry = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(user), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: entry)
    assert machine_environment({}, own)["HOME"] == str(user)


def test_a_home_that_can_only_be_read_is_kept_and_its_caches_and_rays_token_move_below_srpo_home(
    read_only, own
):
    adapted = machine_environment({"HOME": str(read_only), **NAMED}, own)
    assert adapted["HOME"] == str(read_only), "~/.aws, ~/.ssh and ~/.gitconfig still count"
    for name in ("XDG_CACHE_HOME", "TRITON_HOME", "CUDA_CACHE_PATH", "MPLCONFIGDIR", "RAY_AUTH_TOKEN_PATH"):
        assert Path(adapted[name]).is_relative_to(own), name
        assert can_write(Path(adapted[name]).parent), name
    token = Path(adapted["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    again = machine_environment({"HOME": str(read_only), **NAMED}, own)
    assert again == adapted
    assert Path(again["RAY_AUTH_TOKEN_PATH"]).read_text() == token.read_text()


def test_tokens_in_a_home_that_can_only_be_read_still_count(read_only, own):
    for name in (".ray/auth_token", ".cache/huggingface/token"):
        (read_only / name).parent.mkdir(parents=True)
        (read_only / name).write_text("x")
    adapted = machine_environment({"HOME": str(read_only), **NAMED}, own)
    assert "RAY_AUTH_TOKEN_PATH" not in adapted
    assert adapted["HF_TOKEN_PATH"] == str(read_only / ".cache/huggingface/token")


@pytest.mark.parametrize("given", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"])
def test_a_token_or_cluster_of_the_user_is_not_replaced(read_only, own, given):
    environment = {"HOME": str(read_only), given: "10.0.0.1:6379", **NAMED}
    assert machine_environment(environment, own).get("RAY_AUTH_TOKEN_PATH") == environment.get(
        "RAY_AUTH_TOKEN_PATH"
    )


def test_a_cache_that_an_image_has_set_for_another_user_is_replaced_and_others_are_kept(tmp_path, user, own):
    (tmp_path / "file").touch()
    environment = {
        "HOME": str(user),
        "HF_HOME": str(tmp_path / "file/cache"),
        "TORCH_HOME": str(tmp_path / "torch"),
        **NAMED,
    }
    adapted = machine_environment(environment, own)
    assert adapted == {**environment, "HF_HOME": str(own / "user/hf_home")}
    assert (own / "user/hf_home").is_dir()


def test_a_user_id_without_an_entry_gets_a_name(user, own, nameless):
    adapted = machine_environment({"HOME": str(user)}, own)
    assert adapted["USER"] == adapted["LOGNAME"] == f"uid{os.getuid()}"
    assert machine_environment({"HOME": str(user), "LOGNAME": "me"}, own)["LOGNAME"] == "me"


def test_nothing_is_replaced_where_srpo_home_cannot_be_written_either(tmp_path):
    (tmp_path / "file").touch()
    environment = {"HOME": str(tmp_path / "none"), **NAMED}
    assert machine_environment(environment, tmp_path / "file/home") == environment


def test_rays_sockets_fit_below_the_longest_temporary_directory_that_is_accepted(tmp_path):
    from ray._private.utils import validate_socket_filepath

    longest = "/tmp/" + "x" * (LONGEST_TMPDIR - len("/tmp/"))
    socket = "ray/session_2026-11-30_12-50-34_123456_4194304/sockets/plasma_store"
    validate_socket_filepath(f"{longest}/{socket}")
    with pytest.raises(OSError, match="cannot exceed 107 bytes"):
        validate_socket_filepath(f"{longest}x/{socket}")


@pytest.mark.parametrize("name", ["x" * 100, "tmpü"], ids=["too long", "not ASCII"])
def test_ray_gets_a_short_directory_of_this_user_where_tmpdir_does_not_hold_its_sockets(
    tmp_path, user, own, name
):
    (tmp_path / name).mkdir()
    environment = {"HOME": str(user), "TMPDIR": str(tmp_path / name), **NAMED}
    adapted = machine_environment(environment, own)
    assert adapted["TMPDIR"] == environment["TMPDIR"], "other files stay where the user wants them"
    short = Path(adapted["RAY_TMPDIR"])
    assert fits_sockets(short)
    assert stat.S_IMODE(short.stat().st_mode) == 0o700
    assert machine_environment(adapted, own) == adapted


def test_a_short_directory_that_another_user_has_made_is_refused(tmp_path, user, own, monkeypatch):
    (tmp_path / f"srpo-{os.geteuid()}").symlink_to(user)
    monkeypatch.setattr(machine, "SHARED_DIRECTORIES", (str(tmp_path),))
    monkeypatch.setattr(machine, "LONGEST_TMPDIR", len(str(tmp_path)))
    (tmp_path / "longer").mkdir()
    environment = {"HOME": str(user), "TMPDIR": str(tmp_path / "longer"), **NAMED}
    with pytest.raises(ConfigError, match="is a link"):
        machine_environment(environment, own)


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_a_temporary_directory_that_cannot_be_written_is_replaced(tmp_path, user, own, kind):
    (tmp_path / "file").touch()
    value = {"missing": str(tmp_path / "none"), "a file": str(tmp_path / "file"), "empty": ""}[kind]
    adapted = machine_environment({"HOME": str(user), "TMPDIR": value, **NAMED}, own)
    assert adapted["TMPDIR"] == "/tmp"


def test_a_relative_temporary_directory_becomes_absolute_because_stages_run_elsewhere(
    tmp_path, user, own, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    adapted = machine_environment({"HOME": str(user), "TMPDIR": "scratch", **NAMED}, own)
    assert adapted["TMPDIR"] == str(tmp_path / "scratch")


def test_without_any_shared_directory_temporary_files_are_below_srpo_home(tmp_path, user, own, monkeypatch):
    monkeypatch.setattr(machine, "SHARED_DIRECTORIES", (str(tmp_path / "none"),))
    environment = {"HOME": str(user), "TMPDIR": str(tmp_path / "none"), **NAMED}
    assert machine_environment(environment, own)["TMPDIR"] == str(own / "user/tmp")
    assert (own / "user/tmp").is_dir()


def test_every_command_and_every_stage_gets_the_adapted_environment(tmp_path, own, monkeypatch):
    from srpo_core.workspace.worktree import Workspace

    (tmp_path / "a long name of a temporary directory").mkdir()
    hostile = {
        "HOME": str(tmp_path / "none"),
        "TMPDIR": str(tmp_path / "a long name of a temporary directory"),
        "SRPO_HOME": str(own),
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "socks4://127.0.0.1:9",
        "PYTHONIOENCODING": "latin-1",
        "PYTHONUTF8": "0",
    }
    for name in ("no_proxy", "NO_PROXY", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    stage = Workspace("run", tmp_path, tmp_path / "run/workspace", own, "0").environment()
    assert stage["PYTHONUTF8"] == "1"
    assert stage["PYTHONIOENCODING"] == "utf-8"
    adapt_to_machine()
    for environment in (stage, os.environ):
        assert environment["HOME"] == str(own / "user")
        assert environment["RAY_TMPDIR"] == f"/tmp/srpo-{os.geteuid()}"
        assert "127.0.0.1" in environment["no_proxy"]
        assert "ALL_PROXY" not in environment


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_a_random_user_id_without_home_has_a_home_and_a_name_and_may_write_its_caches(monkeypatch):
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "SRPO_HOME"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # the directories of pytest are closed to others
        Path(place).chmod(0o777)
        monkeypatch.chdir(place)
        assert home_and_name_of(54321) == [f"{place}/.srpo/user", "uid54321"]
        monkeypatch.chdir("/")


def home_and_name_of(uid):
    """Return what Python takes for home and name of a user in an adapted environment, in a child process.

    It is not a new interpreter, because the one of the tests may be closed to other users.
    """
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            adapt_to_machine()
            (Path.home() / ".cache").mkdir()
            os.write(writing, f"{Path.home()} {getpass.getuser()}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = answer.read().split()
    os.waitpid(child, 0)
    return found
