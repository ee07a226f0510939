"""Read DVC's configuration of a checkout, and write that of a workspace, whose relative paths would not work there."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import ConfigError

DIRECTORY: Final = Path(".dvc")
_NAMED: Final = ("remote", "machine", "db")  # sections that have a name, as in ['remote "default"']
_LEVELS: Final = ("system", "global", "repo", "local")  # from the weakest to the strongest
_OWN: Final = stat.S_IRUSR | stat.S_IWUSR
_REFERENCE: Final = re.compile(
    rb"%\([^)]*\)s"
)  # to another option; there is no way to write these letters as such


def require_config(checkout: Path) -> None:
    """Require that DVC can read its configuration files: the checkout's, the user's and the system's.

    Raises:
        ConfigError: one of them is missing or damaged; the message names it and the line, without what is written
            there, which may be a secret.
    """
    from configobj import ConfigObjError
    from dvc.config import Config
    from dvc.config import ConfigError as DvcConfigError

    if not (checkout / DIRECTORY / Config.CONFIG).is_file():
        raise ConfigError(f"{checkout} has no .dvc/config: restore it with git")
    valid: dict[str, Any] = {}
    for level, path in _files(checkout):
        try:
            _merge(valid, Config.load_file(str(path)))
            Config.validate(valid)
        except FileNotFoundError:
            continue
        except (DvcConfigError, ConfigObjError, UnicodeError) as error:
            remedy = "restore it with git" if level == "repo" else "correct or remove it"
            raise ConfigError(
                f"{path} is not a configuration that DVC can read ({_reason(error, path)}): {remedy}"
            ) from None


def share_config(checkout: Path, workspace: Path, site_cache: Path) -> None:
    """Give a workspace the cache, the remotes and the local configuration of its checkout, by absolute paths.

    site_cache: the directory of DVC's indices while its configuration is read.

    Raises:
        ConfigError: see `require_config`.
    """
    from dvc.config import Config
    from dvc.repo import Repo

    require_config(checkout)
    with Repo(str(checkout), config={"core": {"site_cache_dir": str(site_cache)}}) as repo:
        local = dict(repo.config.load_one("local"))
        local["cache"] = {**local.get("cache", {}), "dir": repo.cache.default_local_cache_dir}
        remotes = {name: dict(values) for name, values in local.get("remote", {}).items()}
        for name, remote in repo.config["remote"].items():
            shared = remotes.setdefault(name, {})
            shared["verify"] = True  # what is pulled has the bytes that were pushed
            if Path(remote["url"]).is_absolute():
                shared["url"] = remote["url"]
    _write(workspace / DIRECTORY / Config.CONFIG_LOCAL, {**local, "remote": remotes})


def _files(checkout: Path) -> Iterator[tuple[str, Path]]:
    from dvc.config import Config

    for level in _LEVELS:
        directory = checkout / DIRECTORY if level in ("repo", "local") else Path(Config.get_dir(level))
        yield level, directory / (Config.CONFIG_LOCAL if level == "local" else Config.CONFIG)


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _reason(error: Exception, path: Path) -> str:
    from configobj import ConfigObjError, InterpolationError

    if isinstance(error, InterpolationError):
        lines = path.read_bytes().splitlines()
        found = ", ".join(str(number) for number, line in enumerate(lines, 1) if _REFERENCE.search(line))
        return f"line {found}: DVC takes %(NAME)s for a reference to an option NAME, so no value can have these letters"
    if isinstance(error.__cause__, ConfigObjError):
        number = re.search(r"line (\d+)\.$", str(error))
        return f"line {number[1] if number else '?'}: write KEY = VALUE, below a [section] that is there once"
    return " ".join(str(error).split())


def _write(path: Path, config: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a configuration as UTF-8; DVC's own writer refuses every letter outside ASCII. It may hold a remote's keys."""
    from configobj import ConfigObj

    content = ConfigObj(encoding="utf-8", interpolation=False)
    for section, values in config.items():
        named = {f'{section} "{name}"': one for name, one in values.items()} if section in _NAMED else None
        for title, entries in ({section: values} if named is None else named).items():
            if entries:
                content[title] = {
                    key: str(one) if isinstance(one, str) else one for key, one in entries.items()
                }
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWN), "wb") as file:
        content.write(file)
