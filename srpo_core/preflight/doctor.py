"""Check what a run on this machine needs: `srpo doctor`."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final

from srpo_core.config import Settings
from srpo_core.errors import ConfigError, SrpoError
from srpo_core.preflight import machine
from srpo_core.preflight.checkout import check_checkout
from srpo_core.preflight.consistency import require_consistent
from srpo_core.preflight.data_files import examine_data
from srpo_core.preflight.disk import bytes_of_run, count_weights
from srpo_core.preflight.notifications import check_channels
from srpo_core.preflight.services import check_services
from srpo_core.preflight.weight_files import check_weights
from srpo_core.runtime.shared_files import storage
from srpo_core.storage import open_store, require_publishable

Found = tuple[bool, str]
SETTINGS: Final = "settings"
LOCK_FILE: Final = Path("requirements.lock")
LEAST_FREE_GB: Final = 5  # for everything but weights
GB: Final = 1e9


@dataclass(frozen=True)
class Finding:
    """One line of `srpo doctor`: what was checked, whether it is good, and what was found or what to do."""

    what: str
    good: bool
    detail: str


def examine(settings: Settings | ConfigError) -> Iterator[Finding]:
    """Run every check of `CHECKS` and yield its findings; what a check writes to the store, it deletes.

    settings: or why there are none: that is the first finding, and only the checks of `OF_MACHINE` follow.
    """
    if isinstance(settings, ConfigError):
        skipped = ", ".join(what for what in CHECKS if what not in OF_MACHINE and what != SETTINGS)
        yield Finding(
            SETTINGS, good=False, detail=f"{_on_one_line(settings)} (not checked without: {skipped})"
        )
    for what, check in CHECKS.items():
        try:
            if not isinstance(settings, ConfigError):
                found = check(settings)
            elif what in OF_MACHINE:
                found = OF_MACHINE[what](None)
            else:
                continue
            for good, detail in [found] if isinstance(found, tuple) else found:
                yield Finding(what, good, detail)
        except (OSError, SrpoError) as error:  # what one check cannot read does not hide the others
            yield Finding(what, good=False, detail=_on_one_line(error))


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _settings(settings: Settings) -> tuple[bool, str]:
    try:
        require_consistent(settings)
    except SrpoError as error:
        return False, str(error)
    return True, "consistent"


def _python(_: object) -> tuple[bool, str]:
    found = ".".join(map(str, sys.version_info[:3]))
    return sys.version_info[:2] == (3, 11), f"{found} (3.11 is needed)"


def _packages(_: object) -> tuple[bool, str]:
    if not LOCK_FILE.exists():
        return False, f"{LOCK_FILE} is missing: run srpo in the project's directory"
    lines = [
        line for line in LOCK_FILE.read_text(encoding="utf-8").splitlines() if "==" in line and line[0] != "#"
    ]
    wrong = [line for line in lines if _version(line.split("==")[0]) != line.split("==")[1]]
    if wrong:
        return (
            False,
            f"{len(wrong)} of {len(lines)} packages differ from {LOCK_FILE}, first {wrong[0]}: run 'make setup'",
        )
    return True, f"all {len(lines)} packages of {LOCK_FILE}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _programs(_: object) -> tuple[bool, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    missing = [name for name in ("git", "dvc") if shutil.which(name, path=path) is None]
    return not missing, f"not found: {', '.join(missing)}" if missing else "git and dvc"


def _disk(settings: Settings) -> tuple[bool, str]:
    free = shutil.disk_usage(Path.cwd()).free / GB
    weights = count_weights(Path(settings.model.path) / "transformer")
    needed = LEAST_FREE_GB + sum(bytes_of_run(settings, weights).values()) / GB
    asked = (
        f"a run needs at most {needed:.0f} GB more than earlier runs take"
        if weights
        else "run 'srpo plan' to see how much a run needs"
    )
    return free > needed, f"{free:.0f} GB free here ({asked})"


def _store(settings: Settings) -> tuple[bool, str]:
    try:
        store = open_store()
        count = len(store.versions())
        require_publishable(store, accepted=settings.release.unconditional_store)
    except SrpoError as error:
        return False, str(error)
    return True, f"{store.uri}, releases: {count}; writes, deletions and conditions were tested"


def _shared(_: object) -> tuple[bool, str]:
    try:
        shared = storage()
    except SrpoError as error:
        return False, str(error)
    return True, f"{shared or 'SRPO_SHARED is not set: workers share the disk of this machine'}"


def _devices(settings: Settings) -> tuple[bool, str]:
    import torch

    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "no GPU"
    needed = settings.resources.train_workers if settings.resources.use_gpu else 0
    return (
        count >= needed or "RAY_ADDRESS" in os.environ,
        f"{os.cpu_count()} CPUs, {names} (the settings ask for {needed} GPUs)",
    )


# checks that need no settings
OF_MACHINE: Final = MappingProxyType[str, Callable[[Settings | None], Found | Iterator[Found]]](
    {
        "python": _python,
        "packages": _packages,
        "programs": _programs,
        "checkout": check_checkout,
        "shared": _shared,
        "home": machine.check_home,
        "temporary": machine.check_temporary,
        "proxy": machine.check_proxy,
        "encoding": machine.check_encoding,
        "prefect": machine.check_prefect,
        "services": check_services,
        "dvc": machine.check_dvc,
        "notify": check_channels,
    }
)
CHECKS: Final = MappingProxyType[str, Callable[[Settings], Found | Iterator[Found]]](
    {
        SETTINGS: _settings,
        **OF_MACHINE,
        "weights": check_weights,
        "data": examine_data,
        "disk": _disk,
        "store": _store,
        "devices": _devices,
    }
)
