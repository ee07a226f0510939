"""Remember the signed moves of aliases that this checkout has seen, so that an alias cannot be set back unnoticed.

Whoever can write to a store can replace an alias by an older copy of itself, whose signature is valid. Only a reader
that has seen the newer one can know that.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_core.artifacts import home, read_json, write_json
from srpo_core.release.signing import history_digest
from srpo_core.release.trust import SignatureError


def require_not_set_back(store_uri: str, alias: str, history: Sequence[Mapping[str, Any]]) -> None:
    """Require that the history of an alias continues the one that was seen last, and remember it.

    Raises:
        SignatureError: moves that were seen are gone or differ.
    """
    key = hashlib.sha256(f"{store_uri} {alias}".encode()).hexdigest()[:16]
    path = home() / "aliases" / f"{key}.json"
    nothing: dict[str, Any] = {"moves": 0, "digest": history_digest(())}
    seen = read_json(path) if path.is_file() else nothing
    if history_digest(history[: seen["moves"]]) != seen["digest"]:
        raise SignatureError(
            f"the alias {alias} in {store_uri} has lost moves that were seen here before: somebody has set it back; "
            f"restore it, or delete {path} if you know why, and check it with 'srpo show'"
        )
    if len(history) > seen["moves"]:
        write_json(
            path,
            {"store": store_uri, "alias": alias, "moves": len(history), "digest": history_digest(history)},
        )
