"""Signatures of releases and of moves: who made them, and what is refused."""

import json
import shutil
import subprocess

import asyncssh
import pytest
from stored_files import Files

from srpo_core.errors import ConfigError
from srpo_core.release.aliases import move_alias, promote
from srpo_core.release.download import pull
from srpo_core.release.references import find_alias, in_production, read_alias, resolve
from srpo_core.release.signing import RELEASE_NAMESPACE, manifest_bytes, sign, sign_release
from srpo_core.release.summary import describe, list_releases
from srpo_core.release.trust import (
    UNCHECKED,
    SignatureError,
    Trust,
    fingerprint,
    read_signers,
    release_state,
    require_signer,
)
from srpo_core.release.verify import verify, verify_aliases
from srpo_core.storage.manifest import encode_sealed

OURS = 'namespaces="srpo-release,srpo-alias"'


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two SSH keys, each as (path of the private key, public key)."""
    made = {}
    for name in ("alice", "mallory"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        path = tmp_path_factory.mktemp("keys") / name
        key.write_private_key(path)
        path.chmod(0o600)
        made[name] = (path, key.export_public_key().decode().strip())
    return made


@pytest.fixture
def as_signer(keys, monkeypatch):
    """A function that makes a key the one to sign with; None: none."""

    def choose(name):
        if name is None:
            monkeypatch.delenv("SRPO_SIGNING_KEY", raising=False)
        else:
            monkeypatch.setenv("SRPO_SIGNING_KEY", str(keys[name][0]))

    choose(None)
    return choose


@pytest.fixture
def listed(keys, tmp_path, monkeypatch):
    """The list of allowed signers, with Alice; every command reads it."""
    path = tmp_path / "allowed_signers"
    path.write_text(f"# who may release\n\nalice@example.org {OURS} {keys['alice'][1]}\n")
    monkeypatch.setenv("SRPO_ALLOWED_SIGNERS", str(path))
    monkeypatch.delenv("SRPO_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.fixture
def required(monkeypatch, listed):
    """As if release.require_signature were true."""
    trust = Trust(read_signers(listed), required=True, where=str(listed))
    for module in ("aliases", "references", "verify", "download"):
        monkeypatch.setattr(f"srpo_core.release.{module}.trust_here", lambda: trust)
    return trust


def edit_alias(store, name, change):
    """Change an alias and seal it again, as somebody who can write to the store may do."""
    files = Files(store)
    path = f"models/tiny/aliases/{name}.json"
    value = json.loads(files[path])
    change(value)
    files[path] = encode_sealed(value)


def test_a_release_is_signed_by_the_key_of_the_environment_and_stays_what_it_was(
    store, publish, as_signer, listed
):
    version = publish(1)
    before = store.manifest(version)
    trust = Trust(read_signers(listed))
    assert release_state(store, version, store.manifest(version), trust) == "unsigned"
    assert sign_release(store, version) is False
    as_signer("alice")
    assert sign_release(store, version) is True
    assert sign_release(store, version) is True
    assert release_state(store, version, store.manifest(version), trust) == "signed by alice@example.org"
    assert len(store.signatures(version)) == 1
    assert store.manifest(version) == before
    assert verify(store, version) == before
    assert store.remove([version]) == [version]
    assert store.signatures(version) == []


@pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="compares with OpenSSH's ssh-keygen, which .ci/run installs"
)
def test_ssh_keygen_checks_a_signature_without_this_project(tmp_path, as_signer, listed, publish, store):
    version = publish(1)
    as_signer("alice")
    sign_release(store, version)
    files = Files(store)
    (name,) = (name for name in files if name.endswith(".sig"))
    assert name.startswith(f"models/tiny/signatures/{version}/")
    (tmp_path / "manifest.sig").write_bytes(files[name])
    command = ["ssh-keygen", "-Y", "verify", "-f", str(listed), "-I", "alice@example.org"]
    command += ["-n", "srpo-release", "-s", str(tmp_path / "manifest.sig")]
    manifest = files[f"models/tiny/versions/{version}/manifest.json"]
    assert subprocess.run(command, input=manifest, capture_output=True, check=False).returncode == 0
    assert subprocess.run(command, input=manifest + b" ", capture_output=True, check=False).returncode != 0


def test_without_ssh_keygen_a_key_makes_the_same_signature(as_signer, monkeypatch, keys):
    as_signer("alice")
    by_program = sign(b"data", RELEASE_NAMESPACE)
    monkeypatch.setattr("shutil.which", lambda _: None)
    here = sign(b"data", RELEASE_NAMESPACE)
    assert here.startswith(b"-----BEGIN SSH SIGNATURE-----")
    assert b"".join(here.split()) == b"".join(by_program.split())


def test_a_changed_manifest_with_a_new_seal_is_refused(store, publish, as_signer, listed, tmp_path):
    version = publish(1)
    as_signer("alice")
    sign_release(store, version)
    files = Files(store)
    (name,) = (name for name in files if name.endswith("manifest.json"))
    files[name] = encode_sealed(json.loads(files[name]) | {"created_at": "2020-01-01"})
    for act in (
        lambda: verify(store, version),
        lambda: promote(store, version),
        lambda: pull(store, version, format_name=None, target=tmp_path / "here"),
    ):
        with pytest.raises(SignatureError, match="has no valid signature by a signer of") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "here").exists()


def test_a_key_that_is_not_in_the_list_counts_only_beside_one_that_is(
    store, publish, as_signer, listed, keys
):
    version = publish(1)
    as_signer("mallory")
    sign_release(store, version)
    (signature,) = store.signatures(version)
    public = asyncssh.import_public_key(keys["mallory"][1])
    assert fingerprint(signature) == public.get_fingerprint()
    with pytest.raises(SignatureError, match="signed with SHA256:"):
        verify(store, version)
    as_signer("alice")
    sign_release(store, version)
    assert (
        release_state(store, version, store.manifest(version), Trust(read_signers(listed)))
        == "signed by alice@example.org"
    )


def test_a_signature_for_another_purpose_is_refused_even_if_the_list_allows_it(
    store, publish, as_signer, listed, keys
):
    listed.write_text(f'alice@example.org namespaces="*" {keys["alice"][1]}\n')
    version = publish(1)
    as_signer("alice")
    store.add_signature(version, sign(manifest_bytes(store, version), "git"))
    with pytest.raises(SignatureError, match="for the namespace srpo-release"):
        verify(store, version)


def test_damaged_signatures_are_refused_in_one_line(store, publish, as_signer, listed):
    version = publish(1)
    as_signer("alice")
    good = sign(manifest_bytes(store, version), RELEASE_NAMESPACE)
    for bad in (
        b"",
        b"x",
        good[:120],
        good.replace(b"U1NIU0lH", b"U1NIU0lI"),
        good[:200] + b"AAAA" + good[204:],
    ):
        store.add_signature(version, bad)
        with pytest.raises(SignatureError, match="has no valid signature") as caught:
            verify(store, version)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("alice@example.org ssh-ed25519 {key}", "line 2 has no namespaces, so a signature for anything else"),
        ("alice@example.org {ours} ssh-ed25519 AAAA", "line 2 is no allowed signer"),
        ("alice@example.org", "line 2 is no allowed signer"),
        (
            "ca cert-authority,{ours} ssh-ed25519 {key}",
            "names a certificate authority, which is not supported",
        ),
        ("!alice {ours} ssh-ed25519 {key}", "allows nobody"),
    ],
)
def test_a_line_of_the_list_that_cannot_be_used_is_named(tmp_path, keys, line, fault):
    path = tmp_path / "signers"
    path.write_text("# signers\n" + line.format(ours=OURS, key=keys["alice"][1].split()[1]) + "\n")
    with pytest.raises(ConfigError, match=fault) as caught:
        read_signers(path)
    assert "\n" not in str(caught.value)


def test_a_missing_list_is_an_error_and_not_an_empty_one(tmp_path):
    with pytest.raises(ConfigError, match=r"list of allowed signers .* cannot be read"):
        read_signers(tmp_path / "nowhere")


def test_without_a_list_a_signature_is_not_taken_for_checked(store, publish, as_signer):
    version = publish(1)
    as_signer("alice")
    sign_release(store, version)
    assert release_state(store, version, store.manifest(version), Trust()).startswith(
        "signed, but not checked"
    )
    with pytest.raises(SignatureError, match="needs a list of allowed signers"):
        release_state(store, version, store.manifest(version), Trust(required=True))


def test_where_a_signature_is_required_unsigned_releases_and_moves_are_refused(
    store, publish, as_signer, required, tmp_path
):
    version = publish(1)
    for act in (
        lambda: verify(store, version),
        lambda: promote(store, version),
        lambda: pull(store, version, format_name=None, target=tmp_path / "here"),
    ):
        with pytest.raises(
            SignatureError, match=r"release tiny-1 in .* is unsigned, and release\.require_signature"
        ):
            act()
    move_alias(store, "tiny/candidate", version, why="unsigned")
    with pytest.raises(SignatureError, match=r"the last move of the alias tiny/candidate in .* is unsigned"):
        resolve(store, "candidate")
    assert len(verify_aliases(store)) == 1
    as_signer("alice")
    sign_release(store, version)
    promote(store, version)
    assert resolve(store, "production") == version


def test_publishing_is_refused_before_it_starts_without_a_key_that_counts(as_signer, required):
    with pytest.raises(ConfigError, match="SRPO_SIGNING_KEY is not set"):
        require_signer(required)
    as_signer("mallory")
    with pytest.raises(ConfigError, match=r"the key that SRPO_SIGNING_KEY names \(SHA256:.* is not in"):
        require_signer(required)
    as_signer("alice")
    require_signer(required)


def test_the_content_of_a_key_is_never_printed(keys, monkeypatch, as_signer):
    secret = keys["alice"][0].read_text()
    for value in (secret, secret.replace("\n", ""), "A" * 5000):
        monkeypatch.setenv("SRPO_SIGNING_KEY", value)
        with pytest.raises(ConfigError, match="does not name a file") as caught:
            sign(b"data", RELEASE_NAMESPACE)
        assert secret.splitlines()[1][:20] not in str(caught.value)
        assert "AAAA" not in str(caught.value)


def test_stages_do_not_receive_the_key(tmp_path, as_signer):
    from srpo_core.workspace.worktree import Workspace

    as_signer("alice")
    assert "SRPO_SIGNING_KEY" not in Workspace("run", tmp_path, tmp_path, tmp_path, "tree").environment()


def test_a_key_that_cannot_sign_is_reported_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "key"
    path.write_text("not a key")
    path.chmod(0o600)
    monkeypatch.setenv("SRPO_SIGNING_KEY", str(path))
    for found in (shutil.which("ssh-keygen"), None):
        monkeypatch.setattr("shutil.which", lambda _, found=found: found)
        with pytest.raises(ConfigError, match="cannot sign with the key") as caught:
            sign(b"data", RELEASE_NAMESPACE)
        assert "\n" not in str(caught.value)


def test_the_list_and_the_description_of_releases_have_the_state_of_their_signatures(
    store, publish, as_signer, listed, monkeypatch
):
    for number, name in ((1, None), (2, "alice"), (3, "mallory")):
        as_signer(name)
        sign_release(store, publish(number))

    def states():
        found = [release.signature for release in list_releases(store, signatures=True)]
        assert [f"signed   {state}" for state in found] == [
            next(line for line in describe(store, version) if line.startswith("signed"))
            for version in store.versions()
        ]
        return found

    unsigned, by_alice, by_mallory = states()
    assert (unsigned, by_alice) == ("unsigned", "signed by alice@example.org")
    assert by_mallory.startswith(f"not trusted: release tiny-3 in {store.uri} has no valid signature")
    monkeypatch.delenv("SRPO_ALLOWED_SIGNERS")
    assert states()[:2] == ["unsigned", UNCHECKED]
    monkeypatch.setenv("SRPO_ALLOWED_SIGNERS", "none")
    assert [state[:53] for state in states()] == ["not checked: the list of allowed signers none cannot "] * 3
    assert [release.signature for release in list_releases(store)] == [""] * 3


@pytest.fixture
def promoted(store, publish, as_signer, listed):
    """A store in which Alice has signed and promoted tiny-1, then tiny-2."""
    as_signer("alice")
    for number in (1, 2):
        sign_release(store, publish(number))
        promote(store, f"tiny-{number}")
    return store


def test_a_signed_move_is_followed(promoted):
    assert resolve(promoted, "production") == "tiny-2"
    assert verify_aliases(promoted) == []
    history = read_alias(promoted, find_alias(promoted, "production")).history
    assert [step["sequence"] for step in history] == [0, 1]
    assert all("signature" in step for step in history)


def test_a_release_in_production_without_its_signature_does_not_become_the_champion(promoted, required):
    assert in_production(promoted, "tiny") == "tiny-2"
    assert in_production(promoted, "other") is None
    files = Files(promoted)
    for name in [name for name in files if name.startswith("models/tiny/signatures/tiny-2/")]:
        del files[name]
    with pytest.raises(SignatureError, match=r"release tiny-2 in .* is unsigned"):
        in_production(promoted, "tiny")


def point_elsewhere(value):
    value["version"] = "tiny-1"


def repeat_the_older_move(value):
    value |= {"version": "tiny-1", "history": [*value["history"], value["history"][0]]}


def exchange_the_history(value):
    value |= {"version": "tiny-1", "history": [{"from": None, "to": "tiny-0"}, value["history"][0]]}


def edit_a_step_before(value):
    value["history"][0]["who"] = "somebody else"


def edit_the_last_step(value):
    value["history"][-1]["to"] = value["version"] = "tiny-1"


@pytest.mark.parametrize(
    "change",
    [
        point_elsewhere,
        repeat_the_older_move,
        exchange_the_history,
        edit_a_step_before,
        edit_the_last_step,
    ],
)
def test_a_move_by_somebody_who_can_only_write_to_the_store_is_refused(promoted, change):
    edit_alias(promoted, "production", change)
    for read in (resolve, in_production):
        with pytest.raises(SignatureError, match="the last move of the alias tiny/production"):
            read(promoted, "production" if read is resolve else "tiny")
    (fault,) = verify_aliases(promoted)
    assert "\n" not in str(fault)


def test_a_signed_move_of_another_alias_or_another_store_is_refused(promoted, tmp_path):
    files = Files(promoted)
    files["models/tiny/aliases/candidate.json"] = files["models/tiny/aliases/production.json"]
    with pytest.raises(SignatureError, match="the last move of the alias tiny/candidate"):
        resolve(promoted, "candidate")
    if files.root:
        from srpo_core.storage import open_store

        other = open_store(str(shutil.copytree(files.root, tmp_path / "staging")))
        with pytest.raises(SignatureError, match="the last move of the alias tiny/production"):
            resolve(other, "production")


def test_an_older_copy_of_an_alias_is_refused_by_whoever_has_seen_the_newer_one(
    promoted, tmp_path, monkeypatch
):
    files = Files(promoted)
    path = "models/tiny/aliases/production.json"
    edit_alias(
        promoted, "production", lambda value: value.update(version="tiny-1", history=value["history"][:1])
    )
    older = files[path]
    assert resolve(promoted, "production") == "tiny-1"  # nobody has seen more
    promote(promoted, "tiny-2")
    assert resolve(promoted, "production") == "tiny-2"
    files[path] = older
    with pytest.raises(SignatureError, match="has lost moves that were seen here before"):
        resolve(promoted, "production")
    monkeypatch.setenv("SRPO_HOME", str(tmp_path / "another home"))
    assert resolve(promoted, "production") == "tiny-1"
