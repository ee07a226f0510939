"""The directories that only the user of this process can enter."""

import os
import stat

import pytest

from srpo_core.artifacts import home, private_home, private_temporary_directory
from srpo_core.errors import ConfigError


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def another_user(monkeypatch):
    """This process is of another user than the one that has made the files."""
    someone = os.geteuid() + 1
    return lambda: monkeypatch.setattr("os.geteuid", lambda: someone)


def test_the_home_is_created_for_its_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "deep/home"))
    assert home() == tmp_path / "deep/home"
    assert mode(home()) == 0o700


def test_an_open_home_is_closed_and_a_link_to_ones_own_directory_is_followed(tmp_path):
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    assert private_home(tmp_path / "home") == tmp_path / "home"
    assert mode(tmp_path / "disk") == 0o700


def test_an_index_in_an_open_home_that_somebody_else_wrote_is_refused(tmp_path, monkeypatch):
    pickle = tmp_path / "home/dvc/repo/1/links.db"
    pickle.parent.mkdir(parents=True)
    pickle.write_bytes(b"")
    (tmp_path / "home").chmod(0o755)
    original = type(pickle).lstat

    class Foreign:
        def __init__(self, found):
            self.st_uid, self.st_mode = found.st_uid + 1, found.st_mode

    monkeypatch.setattr(
        type(pickle), "lstat", lambda self: Foreign(original(self)) if self == pickle else original(self)
    )
    with pytest.raises(ConfigError, match=r"links\.db belongs to user .* and not to you"):
        private_home(tmp_path / "home")


def test_a_home_of_another_user_is_refused(tmp_path, another_user):
    (tmp_path / "home").mkdir()
    another_user()
    with pytest.raises(ConfigError, match="set SRPO_HOME and TMPDIR to directories of your own"):
        private_home(tmp_path / "home")


def test_a_temporary_directory_that_somebody_else_made_is_refused(tmp_path, another_user):
    assert mode(private_temporary_directory(tmp_path / "srpo-0")) == 0o700
    assert private_temporary_directory(tmp_path / "srpo-0") == tmp_path / "srpo-0"
    another_user()
    with pytest.raises(ConfigError, match="srpo-0 belongs to user"):
        private_temporary_directory(tmp_path / "srpo-0")


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_temporary_directory_that_others_can_enter_or_replace_is_refused(tmp_path, kind):
    path = tmp_path / "srpo-0"
    if kind == "open":
        path.mkdir()
        path.chmod(0o777)
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("")
    with pytest.raises((ConfigError, FileExistsError)):
        private_temporary_directory(path)
