"""Say whether the services run, `srpo up`."""

from srpo_core.artifacts import home
from srpo_core.services.running import running_address
from srpo_core.services.status import examine

Found = tuple[bool, str]


def check_services(_: object) -> Found:
    """Name the services that run and the address of the UI; a finding fails if one of them should run and does not."""
    if running_address(home()) is None:
        return True, "not running: 'srpo up' starts Prefect's server and a worker"
    found = list(examine(home()))
    good = all(one.good for one in found)
    return good, "; ".join(f"{one.name} {one.detail}" for one in found if one.good == good)
