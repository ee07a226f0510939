"""Check the channels to which a run sends its messages."""

from srpo_core.credentials import NOTIFY
from srpo_core.runtime.channels import channels, unusable_channels

Found = tuple[bool, str]


def check_channels(_: object) -> Found:
    """Name the channels of `SRPO_NOTIFY`, and those whose URL apprise does not know; nothing is sent."""
    given = channels()
    if faults := unusable_channels(given):
        return False, "; ".join(faults)
    if not given:
        return True, f"{NOTIFY} is not set: nobody is notified"
    return True, f"{', '.join(one.name for one in given)}; 'srpo notify --test' sends a message to each"
