"""Check the signatures of releases and of moves of aliases against a list of allowed signers."""

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from srpo_core.config import PARAMS_FILE, load_settings
from srpo_core.errors import ConfigError, StoreError
from srpo_core.release.signing import (
    ALIAS_NAMESPACE,
    KEY_VARIABLE,
    RELEASE_NAMESPACE,
    SIGNATURE,
    history_digest,
    move_record,
    sign,
)
from srpo_core.storage import Store
from srpo_core.storage.manifest import encode_sealed

LIST_VARIABLE: Final = "SRPO_ALLOWED_SIGNERS"
UNSIGNED: Final = "unsigned"
UNCHECKED: Final = "signed, but not checked: release.allowed_signers names no list"
_HEADER, _FOOTER = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_MAGIC: Final = b"SSHSIG"


class SignatureError(StoreError):
    """A signature is missing where one is required, or none of them is by an allowed signer."""


@dataclass(frozen=True)
class Signer:
    """One line of a list of allowed signers, and the name that it begins with."""

    name: str
    line: str


@dataclass(frozen=True)
class Trust:
    """Whose signatures count, and whether one is required.

    signers: None if there is no list; where: names the list in errors.
    """

    signers: tuple[Signer, ...] | None = None
    required: bool = False
    where: str = "release.allowed_signers"


def trust_here() -> Trust:
    """Return what params.yaml of the working directory says, if there is one.

    `SRPO_ALLOWED_SIGNERS` names another list, also outside a checkout.

    Raises:
        ConfigError: the list is missing or has a line that cannot be used.
    """
    release = load_settings().release if PARAMS_FILE.is_file() else None
    path = os.environ.get(LIST_VARIABLE) or (release and release.allowed_signers)
    required = release is not None and release.require_signature
    if not path:
        return Trust(None, required)
    return Trust(read_signers(Path(path)), required, str(path))


def read_signers(path: Path) -> tuple[Signer, ...]:
    """Read a list of allowed signers, in OpenSSH's format (ssh-keygen(1), ALLOWED SIGNERS).

    Each line must have `namespaces=`, because without it a signature that was made for anything else would count.

    Raises:
        ConfigError: the file is missing, or a line cannot be used; the message has its number.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the list of allowed signers {path} cannot be read ({error}): write it, or set release.allowed_signers to "
            "null"
        ) from None
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return tuple(
        _signer(line, f"{path}, line {number}")
        for number, line in numbered
        if line and not line.startswith("#")
    )


def require_signer(trust: Trust) -> None:
    """Require that `SRPO_SIGNING_KEY` can make signatures that count, before anything is published.

    Raises:
        ConfigError: it is not set and a signature is required, it cannot be used, or its key is not in the list.
    """
    probe = b"is this key allowed to sign releases?"
    signature = sign(probe, RELEASE_NAMESPACE)
    if signature is None:
        if trust.required:
            raise ConfigError(
                f"release.require_signature is true, but {KEY_VARIABLE} is not set: set it to the path of an SSH key of "
                f"{trust.where}"
            )
        return
    if trust.signers is not None and not any(
        is_valid(probe, signature, one, RELEASE_NAMESPACE) for one in trust.signers
    ):
        raise ConfigError(
            f"the key that {KEY_VARIABLE} names ({fingerprint(signature)}) is not in {trust.where} for the namespace "
            f"{RELEASE_NAMESPACE}: add its public key there"
        )


def release_state(store: Store, version: str, manifest: Mapping[str, Any], trust: Trust) -> str:
    """Return `signed by NAME` or `unsigned` for a release, or that its signature was not checked.

    A signature is over the exact bytes of manifest.json, which encoding the manifest again gives.

    Raises:
        SignatureError: it has signatures, and none is valid by an allowed signer; or it has none and one is required.
    """
    signatures = store.signatures(version)
    what = f"release {version} in {store.uri}"
    return _state(signatures, encode_sealed(manifest), RELEASE_NAMESPACE, what, trust)


def move_state(
    store_uri: str, alias: str, version: str | None, history: Sequence[Mapping[str, Any]], trust: Trust
) -> str:
    """Return the same for the last move of an alias, which must be to the version that the alias names.

    The signed number of the move and the signed digest of the moves before it refuse an older move that was copied to
    the end.

    Raises:
        SignatureError: the signature is not valid or not by an allowed signer, or it is missing and required.
    """
    last = history[-1] if history else {}
    what = f"the last move of the alias {alias} in {store_uri}"
    signature = last.get(SIGNATURE)
    signatures = [] if signature is None else [str(signature).encode()]
    state = _state(signatures, move_record(store_uri, alias, last), ALIAS_NAMESPACE, what, trust)
    if signatures and (
        last.get("to") != version
        or last.get("sequence") != len(history) - 1
        or last.get("previous") != history_digest(history[:-1])
    ):
        raise SignatureError(
            f"{what} is signed for another place in its history, or for another version than {version}: somebody edited "
            "it; move it again with 'srpo promote VERSION'"
        )
    return state


def _state(signatures: Sequence[bytes], data: bytes, namespace: str, what: str, trust: Trust) -> str:
    if not signatures:
        if trust.required:
            raise SignatureError(
                f"{what} is unsigned, and release.require_signature is true: sign it with 'srpo sign', or move it with "
                "SRPO_SIGNING_KEY set"
            )
        return UNSIGNED
    if trust.signers is None:
        if trust.required:
            raise SignatureError(
                f"{what} is signed, but release.require_signature needs a list of allowed signers: set "
                f"release.allowed_signers or {LIST_VARIABLE}"
            )
        return UNCHECKED
    for signature in signatures:
        for signer in trust.signers:
            if is_valid(data, signature, signer, namespace):
                return f"signed by {signer.name}"
    keys = ", ".join(sorted({fingerprint(signature) for signature in signatures}))
    raise SignatureError(
        f"{what} has no valid signature by a signer of {trust.where} for the namespace {namespace} (signed with {keys}): "
        "do not use it, or add the key to the list if you trust it"
    )


def is_valid(data: bytes, signature: bytes, signer: Signer, namespace: str) -> bool:
    """Whether a signature of `data` in this namespace is valid, and made with the signer's key."""
    import asyncssh
    from asyncssh.sshsig import import_allowed_signers

    # asyncssh accepts any namespace that the list allows, so the one in the signature is compared first
    if _parts(signature)[1] != namespace:
        return False
    allowed = import_allowed_signers(signer.line)
    return bool(asyncssh.validate_sshsig(data, signature, _principal(signer), allowed))


def fingerprint(signature: bytes) -> str:
    """Return the fingerprint of the key of a signature, as ssh-keygen prints it."""
    key = _parts(signature)[0]
    if not key:
        return "no readable key"
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def _parts(signature: bytes) -> tuple[bytes, str]:
    """Return public key and namespace of an armored signature (OpenSSH, PROTOCOL.sshsig); both empty if damaged."""
    text = signature.decode(errors="replace").strip()
    if not (text.startswith(_HEADER) and text.endswith(_FOOTER)):
        return b"", ""
    try:
        blob = base64.b64decode(text.removeprefix(_HEADER).removesuffix(_FOOTER))
        if not blob.startswith(_MAGIC):
            return b"", ""
        key, start = _string(blob, len(_MAGIC) + 4)
        return key, _string(blob, start)[0].decode()
    except (binascii.Error, struct.error, UnicodeDecodeError):
        return b"", ""


def _string(blob: bytes, start: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", blob, start)
    end = start + 4 + length
    return blob[start + 4 : end], end


def _principal(signer: Signer) -> str:
    """Return a principal that the line's pattern list matches: a key's owner is asked for, not a certificate's."""
    return next(name for name in signer.name.split(",") if not name.startswith("!"))


def _signer(line: str, where: str) -> Signer:
    import asyncssh
    from asyncssh.sshsig import SSHAllowedSignersEntry

    try:
        entry = SSHAllowedSignersEntry(line)
    except (ValueError, asyncssh.KeyImportError) as error:
        raise ConfigError(
            f'{where} is no allowed signer ({error}): write \'NAME namespaces="{RELEASE_NAMESPACE},{ALIAS_NAMESPACE}" '
            "ssh-ed25519 KEY'"
        ) from None
    if "cert-authority" in entry.options:
        raise ConfigError(
            f"{where} names a certificate authority, which is not supported: list the key itself"
        )
    if "namespaces" not in entry.options:
        raise ConfigError(
            f"{where} has no namespaces, so a signature for anything else would count: add "
            f'namespaces="{RELEASE_NAMESPACE},{ALIAS_NAMESPACE}" after the name'
        )
    name = line.split(maxsplit=1)[0]
    if all(one.startswith("!") for one in name.split(",")):
        raise ConfigError(f"{where} allows nobody: name a principal, for instance you@example.org")
    return Signer(name, line)
