"""Sign releases and moves of aliases with the SSH key that `SRPO_SIGNING_KEY` names.

A release's signature is over the exact bytes of its manifest, which names the SHA-256 of every file, so
`ssh-keygen -Y verify` checks it without this project. A move's signature is over the JSON of `move_record`.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from srpo_core.errors import ConfigError
from srpo_core.storage import Store
from srpo_core.storage.manifest import encode, encode_sealed

RELEASE_NAMESPACE: Final = "srpo-release"
ALIAS_NAMESPACE: Final = "srpo-alias"
KEY_VARIABLE: Final = "SRPO_SIGNING_KEY"
SIGNATURE: Final = "signature"


def signing_key() -> Path | None:
    """Return the file that `SRPO_SIGNING_KEY` names: a private key, or a public key whose private one an agent holds.

    Raises:
        ConfigError: the variable is set and names no file. Its value is not printed, because it may be a key.
    """
    value = os.environ.get(KEY_VARIABLE)
    if not value:
        return None
    try:
        if "\n" not in value and Path(value).expanduser().is_file():
            return Path(value).expanduser().absolute()
    except OSError:  # for instance a name that is too long, because it is a key
        pass
    raise ConfigError(
        f"{KEY_VARIABLE} does not name a file: set it to the path of an SSH key (not to the key itself), or unset it to "
        "publish without a signature"
    )


def sign(data: bytes, namespace: str) -> bytes | None:
    """Return an armored SSH signature of `data`, or None if `SRPO_SIGNING_KEY` is not set.

    `ssh-keygen` signs where it is installed, because it knows agents and security keys, else asyncssh.

    Raises:
        ConfigError: the key cannot be read or used.
    """
    key = signing_key()
    if key is None:
        return None
    program = shutil.which("ssh-keygen")
    return _sign_here(key, data, namespace) if program is None else _sign_by(program, key, data, namespace)


def sign_release(store: Store, version: str) -> bool:
    """Sign a version that is in the store; False if `SRPO_SIGNING_KEY` is not set. Signing it again adds nothing new.

    Raises:
        ConfigError: the key cannot be read or used.
        StoreError: there is no such version, or the store cannot be written.
    """
    signature = sign(manifest_bytes(store, version), RELEASE_NAMESPACE)
    if signature is not None:
        store.add_signature(version, signature)
    return signature is not None


def manifest_bytes(store: Store, version: str) -> bytes:
    """Return the exact bytes of a version's manifest.json: reading it requires that encoding it again gives them."""
    return encode_sealed(store.manifest(version))


def history_digest(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of the moves of an alias, with their signatures."""
    return hashlib.sha256(encode({"history": list(history)})).hexdigest()


def signed_step(
    store_uri: str, alias: str, history: Sequence[Mapping[str, Any]], step: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a step to append to the history of an alias: numbered, with the digest of all steps before it, and signed.

    It is not signed if `SRPO_SIGNING_KEY` is not set.
    """
    numbered = dict(step) | {"sequence": len(history), "previous": history_digest(history)}
    signature = sign(move_record(store_uri, alias, numbered), ALIAS_NAMESPACE)
    return numbered if signature is None else numbered | {SIGNATURE: signature.decode()}


def move_record(store_uri: str, alias: str, step: Mapping[str, Any]) -> bytes:
    """Return the bytes that the signature of a step is over: the step, its alias, and the name of the store.

    A bucket's name is its URI. A directory's name is its last part, because it is mounted at different places.
    """
    name = store_uri if "://" in store_uri else Path(store_uri).name
    rest = {key: value for key, value in step.items() if key != SIGNATURE}
    return encode({"store": name, "alias": alias, "step": rest})


def _sign_by(program: str, key: Path, data: bytes, namespace: str) -> bytes:
    # from standard input: given a file, ssh-keygen signs nothing and succeeds if FILE.sig exists
    command = [program, "-q", "-Y", "sign", "-n", namespace, "-f", str(key)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise _unusable(key, lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def _sign_here(key: Path, data: bytes, namespace: str) -> bytes:
    import asyncssh

    try:
        return bytes(asyncssh.create_sshsig(str(key), data, namespace=namespace))
    except (asyncssh.Error, OSError, ValueError) as error:
        raise _unusable(key, " ".join(str(error).split())) from None


def _unusable(key: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot sign with the key {key} that {KEY_VARIABLE} names ({why}): give a private SSH key without a passphrase, "
        "or the public key of one that ssh-agent holds"
    )
