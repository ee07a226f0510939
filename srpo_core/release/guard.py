"""Open the store for commands that move aliases: it must honour conditional writes, or the settings accept that not."""

from pathlib import Path

from srpo_core.config import PARAMS_FILE, load_settings
from srpo_core.release.links import store_url
from srpo_core.storage import Store, open_store, require_conditions


def guarded_store() -> Store:
    """Open the store of `SRPO_STORE`; check that it honours conditional writes, and `SRPO_STORE_URL` before anything moves.

    Raises:
        StoreError: it does not, and params.yaml of the working directory does not accept that.
        ConfigError: `SRPO_STORE_URL` is no address.
    """
    store_url()
    store = open_store()
    accepted = PARAMS_FILE.is_file() and load_settings().release.unconditional_store
    require_conditions(store, accepted=accepted, where=Path.cwd() / PARAMS_FILE)
    return store
