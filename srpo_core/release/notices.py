"""The messages about releases, which flows and commands send."""

import logging
from collections.abc import Sequence

from srpo_core.errors import SrpoError
from srpo_core.release.aliases import Move, user_name
from srpo_core.release.links import release_links
from srpo_core.runtime.channels import Message
from srpo_core.runtime.notifications import Kind, compose
from srpo_core.storage import Store, model_of

log = logging.getLogger(__name__)


def move_message(
    kind: Kind, store: Store, move: Move, reason: str, *, who: str | None = None
) -> Message | None:
    """Return the message that production was moved, with who and why; None if it pointed there already.

    who: by default the user of this process. Production has moved by now, so a release whose links cannot be told is a
    warning and no error.
    """
    if move.before == move.after:
        return None
    why = f": {reason}" if reason else ""
    cause = f"{move.alias}: {move.before or 'nothing'} → {move.after}, by {who or user_name()}{why}"
    try:
        links = release_links(store, move.after)
    except SrpoError as error:
        log.warning("the message about %s has no links: %s", move.after, error)
        links = {}
    return compose(kind, [model_of(move.after), move.after], cause, links)


def damage_message(store: Store, faults: Sequence[str]) -> Message:
    """Return the message that the store is damaged: every fault in one line."""
    return compose(Kind.DAMAGED, [store.uri], "; ".join(faults))
