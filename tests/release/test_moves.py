"""Promote, roll back, pull and clean up, in a directory and in a bucket."""

import multiprocessing
import resource
import select
import signal
import socket
import threading
from functools import partial
from pathlib import Path

import pytest
from small_release import publish_small

from srpo_core.artifacts import sha256
from srpo_core.errors import ConfigError, GateError, StoreError
from srpo_core.release import collect, fetch, promote, pull, resolve, rollback, show, verify, verify_aliases
from srpo_core.storage import open_store


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request, tmp_path):
    if request.param == "directory":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('bucket')}/p")


@pytest.fixture
def publish(store, tmp_path):
    """A function that publishes a small version; `number` is also its age."""
    return partial(publish_small, store, tmp_path)


class Files:
    """The bytes that a store keeps, past its back."""

    def __init__(self, store):
        self.root = Path(store.uri) if "://" not in store.uri else None
        self.place = (
            None if self.root else dict(zip(("Bucket", "Prefix"), store.uri[5:].split("/"), strict=True))
        )

    def __iter__(self):
        if self.root:
            found = (path.relative_to(self.root) for path in self.root.rglob("*") if path.is_file())
            return iter(sorted(str(path) for path in found if "lock" not in path.name))
        prefix = f"{self.place['Prefix']}/"
        listed = self.client.list_objects_v2(Bucket=self.place["Bucket"], Prefix=prefix)["Contents"]
        names = (entry["Key"].removeprefix(prefix) for entry in listed)
        return iter([name for name in names if name != "verified-writes"])

    def __getitem__(self, name):
        if self.root:
            return (self.root / name).read_bytes()
        return self.client.get_object(**self.key(name))["Body"].read()

    def __setitem__(self, name, data):
        if self.root:
            (self.root / name).write_bytes(data)
        else:
            self.client.put_object(**self.key(name), Body=data)

    def __delitem__(self, name):
        if self.root:
            (self.root / name).unlink()
        else:
            self.client.delete_object(**self.key(name))

    @property
    def client(self):
        import boto3

        return boto3.client("s3")

    def key(self, name):
        return {"Bucket": self.place["Bucket"], "Key": f"{self.place['Prefix']}/{name}"}


def faults_of(store):
    """All that `srpo verify --all` finds."""
    faults = verify_aliases(store)
    for version in store.versions():
        try:
            verify(store, version)
        except StoreError as error:
            faults.append(str(error))
    return faults


def test_one_bit_of_any_stored_file_is_noticed_and_named(store, publish):
    version = publish(1)
    promote(store, version)
    files = Files(store)
    names = list(files)
    assert len(names) == 6  # four files, their manifest, the alias
    assert faults_of(store) == []
    digests = {entry["sha256"]: name for name, entry in store.manifest(version)["files"].items()}
    for name in names:
        data = files[name]
        files[name] = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
        (fault,) = faults_of(store)
        last = name.rpartition("/")[2]
        assert digests.get(last, last) in fault
        assert "\n" not in fault
        files[name] = data
        assert faults_of(store) == []


def test_a_stored_file_that_is_gone_is_noticed(store, publish):
    version = publish(1)
    promote(store, version)
    files = Files(store)
    digests = {entry["sha256"]: name for name, entry in store.manifest(version)["files"].items()}
    for name in list(files):
        data, last = files[name], name.rpartition("/")[2]
        del files[name]
        if last == "production.json":
            assert store.aliases() == []
        elif last == "manifest.json":
            (fault,) = faults_of(store)
            assert "the alias tiny/production" in fault
            assert "points to tiny-1, which is not there" in fault
        else:
            (fault,) = faults_of(store)
            assert f"is damaged: {digests.get(last, name.partition('/tiny-1/')[2])}; restore" in fault
        files[name] = data
    assert faults_of(store) == []


def test_a_decision_that_is_altered_in_the_store_promotes_nothing(store, publish, tmp_path):
    version = publish(1, passed=False)
    files = Files(store)
    (name,) = (name for name in files if name.endswith("manifest.json"))
    files[name] = files[name].replace(b'"passed": false', b'"passed": true')
    for act in (
        lambda: promote(store, version),
        lambda: verify(store, version),
        lambda: show(store, version),
        lambda: pull(store, version, format_name=None, target=tmp_path / "here"),
    ):
        with pytest.raises(StoreError, match=r"manifest\.json was altered after it was written") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert store.aliases() == []
    assert not (tmp_path / "here").exists()
    store.remove(version)
    assert store.versions() == []


def test_a_pulled_manifest_is_the_one_of_the_store_byte_for_byte(store, publish, tmp_path):
    version = publish(1)
    pull(store, version, format_name=None, target=tmp_path / "here")
    files = Files(store)
    (name,) = (name for name in files if name.endswith("manifest.json"))
    assert (tmp_path / "here/manifest.json").read_bytes() == files[name]


def test_promoting_twice_remembers_the_one_before_and_rolling_back_returns_to_it(store, publish):
    first, second = publish(1), publish(2)
    assert (promote(store, first, who="ann").before, resolve(store, "production")) == (None, first)
    move = promote(store, second, reason="sharper", who="ben")
    assert (move.before, move.after) == (first, second)
    assert (resolve(store, "production"), resolve(store, "previous")) == (second, first)
    assert rollback(store, reason="too sharp", who="ann").after == first
    assert (resolve(store, "production"), resolve(store, "previous")) == (first, second)
    _, moves = show(store, second)
    steps = [(step["who"], step["why"], step["from"], step["to"]) for step in moves["tiny/production"]]
    assert steps == [("ben", "sharper", first, second), ("ann", "too sharp", second, first)]


def test_promoting_what_is_production_changes_nothing(store, publish):
    version = publish(1)
    promote(store, version)
    promote(store, version)
    assert len(store.alias("tiny/production")[0]["history"]) == 1


def killed(*_, **__):
    raise KeyboardInterrupt


def test_a_promoter_that_was_killed_before_it_noted_the_previous_version_does_so_when_it_is_repeated(
    store, publish, monkeypatch
):
    first, second, third = publish(1), publish(2), publish(3)
    promote(store, first)
    promote(store, second)

    for act, after, before in (
        (lambda: promote(store, third), third, second),
        (lambda: rollback(store), second, third),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("srpo_core.release.moves.move_alias", killed)
            act()
        assert resolve(store, "production") == after
        assert resolve(store, "previous") != before
        steps = store.alias("tiny/production")[0]["history"]
        move = promote(store, after)
        assert (move.before, move.after) == (after, after)
        assert resolve(store, "previous") == before
        assert store.alias("tiny/production")[0]["history"] == steps


def test_a_rollback_that_was_killed_half_way_is_ended_by_the_same_command_and_not_undone(
    store, publish, monkeypatch
):
    first, second = publish(1), publish(2)
    promote(store, first)
    promote(store, second)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("srpo_core.release.moves.move_alias", killed)
        rollback(store, reason="too sharp")
    move = rollback(store, reason="too sharp")
    assert (move.before, move.after) == (first, first)
    assert (resolve(store, "production"), resolve(store, "previous")) == (first, second)


def test_a_rollback_that_is_given_again_never_puts_the_bad_release_back(store, publish):
    first, second, third = publish(1), publish(2), publish(3)
    for version in (first, second, third):
        promote(store, version)
    assert rollback(store).after == second
    steps = store.alias("tiny/production")[0]["history"]
    for reason in ("", "too sharp"):
        again = rollback(store, reason=reason)
        assert (again.before, again.after) == (second, second)
    assert store.alias("tiny/production")[0]["history"] == steps
    promote(store, first)
    assert rollback(store).after == second, "a promotion can be rolled back again"


def test_a_rollback_undoes_a_promotion_that_was_killed_half_way(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("srpo_core.release.moves.move_alias", killed)
        promote(store, second)
    assert rollback(store).after == first


def test_a_promoter_that_another_overtakes_leaves_the_previous_version_of_the_later_one(
    store, publish, monkeypatch
):
    from srpo_core.release import moves as registry

    first, second, third = publish(1), publish(2), publish(3)
    promote(store, first)
    honest = registry.move_alias

    def overtaken(*arguments, **options):
        monkeypatch.setattr(registry, "move_alias", honest)
        promote(store, third)
        return honest(*arguments, **options)

    monkeypatch.setattr(registry, "move_alias", overtaken)
    promote(store, second)
    assert (resolve(store, "production"), resolve(store, "previous")) == (third, second)


def test_a_refused_model_is_promoted_only_with_an_override_and_a_reason_that_is_kept(store, publish):
    version = publish(1, passed=False)
    with pytest.raises(GateError, match=r"refused tiny-1: the subject is lost\. .*--override --reason"):
        promote(store, version, reason="please")
    with pytest.raises(ConfigError, match="--override needs --reason"):
        promote(store, version, override=True)
    assert store.alias("tiny/production")[0] is None
    promote(store, version, override=True, reason="a demo for the board")
    assert store.alias("tiny/production")[0]["history"][0]["why"] == "override: a demo for the board"


def test_every_model_has_its_own_production_and_no_other_is_moved(store, publish):
    tiny, flux = [publish(1), publish(2)], [publish(number, model="flux-dev") for number in (3, 4)]
    for version in (*tiny, *flux):
        promote(store, version)
    assert resolve(store, "tiny/production") == tiny[1]
    assert resolve(store, "flux-dev/production") == flux[1]
    with pytest.raises(StoreError, match="say which of flux-dev/production, tiny/production"):
        resolve(store, "production")
    with pytest.raises(StoreError, match="say which of flux-dev/production, tiny/production"):
        rollback(store)
    move = rollback(store, model="flux-dev")
    assert (move.alias, move.before, move.after) == ("flux-dev/production", flux[1], flux[0])
    assert resolve(store, "flux-dev/previous") == flux[1]
    assert resolve(store, "tiny/production") == tiny[1]


def test_cleaning_counts_the_versions_of_each_model_apart(store, publish):
    versions = [publish(1), publish(2), *(publish(number, model="flux") for number in (3, 4, 5))]
    assert collect(store, keep=2, delete=True).versions == (versions[2],)
    assert store.versions() == sorted({*versions} - {versions[2]})


def test_there_is_nothing_to_roll_back_to_at_first(store, publish):
    with pytest.raises(StoreError, match="no version before"):
        rollback(store)
    promote(store, publish(1))
    with pytest.raises(StoreError, match="no version before"):
        rollback(store)


def test_of_eight_promoters_at_once_one_wins_and_the_others_are_told(store, publish, monkeypatch):
    versions = [publish(number) for number in range(1, 9)]
    barrier, outcomes = threading.Barrier(8), []
    kind = type(store)
    honest = kind.manifest

    def together(self, version):  # every one has read the alias by now
        manifest = honest(self, version)
        if threading.current_thread() is not threading.main_thread() and not hasattr(
            threading.current_thread(), "met"
        ):
            threading.current_thread().met = True
            barrier.wait(timeout=60)
        return manifest

    monkeypatch.setattr(kind, "manifest", together)

    def act(version):
        try:
            outcomes.append(promote(open_store(store.uri), version).after)
        except StoreError as error:
            assert "another moved tiny/production" in str(error)
            outcomes.append(None)

    threads = [threading.Thread(target=act, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [version for version in outcomes if version]
    assert len(winners) == 1
    assert outcomes.count(None) == 7
    assert resolve(store, "production") == winners[0]


def test_a_format_is_pulled_with_its_config_and_nothing_else(store, publish, tmp_path):
    version = publish(1)
    target = tmp_path / "here"
    pull(store, version, format_name="BF16", target=target)
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    expected = {"tiny-bf16.safetensors", "transformer/weights", "transformer/config.json", "manifest.json"}
    assert names == expected
    with pytest.raises(ConfigError, match="has no format 'q4': known are bf16"):
        pull(store, version, format_name="q4", target=target)


def test_a_pull_goes_on_where_it_was_cut_off_and_keeps_what_is_there(store, publish, tmp_path, monkeypatch):
    version = publish(1)
    target = tmp_path / "here"
    pull(store, version, format_name=None, target=target)
    whole = (target / "transformer/weights").read_bytes()
    (target / "transformer/weights").unlink()
    (target / "transformer/weights.part").write_bytes(whole[:5000])
    asked, honest = [], type(store).read

    def read(self, version, name, start=0):
        asked.append((name, start))
        return honest(self, version, name, start)

    monkeypatch.setattr(type(store), "read", read)
    pull(store, version, format_name=None, target=target)
    assert asked == [("transformer/weights", 5000)]
    assert (target / "transformer/weights").read_bytes() == whole
    (target / "transformer/weights").unlink()
    (target / "transformer/weights.part").write_bytes(b"no beginning of it")
    pull(store, version, format_name=None, target=target)
    assert (target / "transformer/weights").read_bytes() == whole
    assert not list(target.rglob("*.part"))


class CuttingProxy:
    """A way to a server that ends each connection in which an object comes, after so many bytes of it; None: never."""

    def __init__(self, endpoint, num_bytes):
        host, port = endpoint.removeprefix("http://").split(":")
        self.upstream, self.num_bytes = (host, int(port)), num_bytes
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.pass_on, args=(client,), daemon=True).start()

    def pass_on(self, client):
        left = None
        with client, socket.create_connection(self.upstream) as upstream:
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client and data.startswith(b"GET") and b"/objects/" in data.split(b"\r\n")[0]:
                        left = self.num_bytes
                    if ready is upstream and left is not None:
                        data, left = data[:left], left - len(data)
                    (upstream if ready is client else client).sendall(data)
                    if left is not None and left <= 0:
                        return


@pytest.fixture
def cut_off(bucket, s3_environment, tmp_path, monkeypatch):
    """A store with one release of four files of 3.4 to 4.6 MB, behind a proxy that cuts each file after 2.5 MB."""
    publish_small(open_store(f"s3://{bucket}/p"), tmp_path, 1, repeats=180_000)
    proxy = CuttingProxy(s3_environment, 2_500_000)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield open_store(f"s3://{bucket}/p"), proxy
    proxy.server.close()


@pytest.mark.s3
def test_a_pull_that_is_cut_off_shows_no_file_and_goes_on_from_what_has_come(cut_off, tmp_path, monkeypatch):
    store, proxy = cut_off
    target = tmp_path / "here"
    with pytest.raises(StoreError, match=r"was cut off in the middle of a file .*try again") as caught:
        pull(store, "tiny-1", format_name=None, target=target)
    assert "\n" not in str(caught.value)
    (partial_file,) = (path for path in target.rglob("*") if path.is_file())
    assert partial_file.name == "README.md.part"
    size = partial_file.stat().st_size
    assert 2_000_000 < size < 2_500_000
    proxy.num_bytes = None
    asked, honest = [], type(store).read

    def read(self, version, name, start=0):
        asked.append((name, start))
        return honest(self, version, name, start)

    monkeypatch.setattr(type(store), "read", read)
    paths = pull(store, "tiny-1", format_name=None, target=target)
    assert asked[0] == ("README.md", size)
    assert [start for _, start in asked[1:]] == [0, 0, 0]
    entries = store.manifest("tiny-1")["files"]
    assert {str(path.relative_to(target)): sha256(path) for path in paths} == {
        name: entry["sha256"] for name, entry in entries.items()
    }


@pytest.mark.s3
def test_a_release_that_cannot_be_read_to_its_end_is_not_called_damaged_and_is_not_kept(cut_off, tmp_path):
    store, proxy = cut_off
    for act in (lambda: verify(store, "tiny-1"), lambda: fetch(store, "tiny-1", cache=tmp_path / "cache")):
        with pytest.raises(StoreError, match="was cut off in the middle of a file") as caught:
            act()
        assert "is damaged" not in str(caught.value)
    assert [path for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".fetch")] == []
    proxy.num_bytes = None
    assert verify(store, "tiny-1")["version"] == "tiny-1"
    assert (
        sha256(fetch(store, "tiny-1", cache=tmp_path / "cache") / "README.md")
        == (store.manifest("tiny-1")["files"]["README.md"]["sha256"])
    )


def _pull_with_a_file_size_limit(uri, target, outcomes):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        outcomes.put(pull(open_store(uri), "tiny-1", format_name=None, target=target))
    except StoreError as error:
        outcomes.put(str(error))


def test_a_pull_to_a_full_disk_says_so_and_shows_no_file_and_the_same_call_goes_on(tmp_path):
    """The limit on the size of a file stops a write in the middle, as a full disk does."""
    store = open_store(str(tmp_path / "store"))
    publish_small(store, tmp_path, 1)
    target = tmp_path / "here"
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    process = context.Process(target=_pull_with_a_file_size_limit, args=(store.uri, target, outcomes))
    process.start()
    message = outcomes.get(timeout=60)
    process.join()
    assert f"release tiny-1 cannot be written to {target} (" in message
    assert "File too large): make room there, then the same command goes on" in message
    assert "\n" not in message
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["README.md.part"]
    for path in pull(store, "tiny-1", format_name=None, target=target):
        assert path.read_bytes() == b"".join(store.read("tiny-1", str(path.relative_to(target))))
    assert not list(target.rglob("*.part"))


def test_a_pulled_file_that_is_not_what_its_manifest_says_is_refused(store, publish, tmp_path, monkeypatch):
    version = publish(1)
    monkeypatch.setattr(type(store), "read", lambda *_: iter([b"other bytes"]))
    with pytest.raises(StoreError, match="does not have its SHA-256: run 'srpo verify'"):
        pull(store, version, format_name=None, target=tmp_path / "here")
    assert not [path for path in (tmp_path / "here").rglob("*") if path.is_file()]


def test_cleaning_keeps_the_newest_what_aliases_point_to_and_all_that_production_was(store, publish):
    versions = [publish(number) for number in range(1, 7)]
    promote(store, versions[0])
    promote(store, versions[1])
    promote(store, versions[2])
    planned = collect(store, keep=1)
    assert planned.versions == (versions[3], versions[4])
    assert not planned.done
    assert store.versions() == versions
    assert collect(store, keep=1, delete=True).versions == planned.versions
    assert store.versions() == [*versions[:3], versions[5]]
    assert collect(store, keep=0).versions == (versions[5],)
    assert collect(store, keep=9).versions == ()


def test_cleaning_keeps_what_is_promoted_while_it_removes_others(store, publish, monkeypatch):
    versions = [publish(number) for number in range(1, 5)]
    kind = type(store)
    honest = kind.remove

    def promoting(self, version, **options):
        promote(store, versions[1])
        return honest(self, version, **options)

    monkeypatch.setattr(kind, "remove", promoting)
    assert collect(store, keep=1).versions == tuple(versions[:3])
    assert collect(store, keep=1, delete=True).versions == (versions[0], versions[2])
    assert store.versions() == [versions[1], versions[3]]
    assert verify(store, "production")["version"] == versions[1]


def test_cleaning_keeps_every_version_where_there_are_fewer_than_it_is_to_keep(store, publish):
    versions = [publish(number) for number in range(1, 4)]
    assert collect(store, keep=5, delete=True).versions == ()
    assert store.versions() == versions


def test_a_version_promoted_while_it_is_removed_stays_whoever_comes_first(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    from srpo_core.release import publishing

    asked = publishing.held_versions

    def promoted_in_between(store):
        held = asked(store)
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "held_versions", asked)
            promote(store, second)
        monkeypatch.setattr(publishing, "held_versions", asked)
        return held

    monkeypatch.setattr(publishing, "held_versions", promoted_in_between)
    assert publishing.remove_unheld(store, second) is False
    assert resolve(store, "production") == second
    assert verify(store, second)


def remove_after_the_next_move(store, version, monkeypatch):
    """As `gc` beside a promoter: the version goes once an alias points to it, before that is looked at."""
    kind, honest = type(store), type(store).write_alias

    def then_removed(self, name, value, token):
        done = honest(self, name, value, token)
        monkeypatch.setattr(kind, "write_alias", honest)
        self.remove(version)
        return done

    monkeypatch.setattr(kind, "write_alias", then_removed)


def test_a_version_removed_while_it_is_promoted_leaves_production_where_it_was(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    remove_after_the_next_move(store, second, monkeypatch)
    before = store.alias("tiny/production")[0]
    with pytest.raises(StoreError, match=f"{second} was removed from .* at the same moment"):
        promote(store, second)
    assert store.alias("tiny/production")[0] == before, "no step is left that leads nowhere"
    assert promote(store, publish(3)).before == first
    assert rollback(store).after == first


def test_a_version_removed_while_it_becomes_the_first_in_production_leaves_none_there(
    store, publish, monkeypatch
):
    first = publish(1)
    remove_after_the_next_move(store, first, monkeypatch)
    with pytest.raises(StoreError, match="was removed from"):
        promote(store, first)
    assert store.alias("tiny/production")[0]["version"] is None
    second = publish(2)
    assert promote(store, second).before is None
    assert resolve(store, "production") == second


def test_a_store_that_cannot_be_asked_after_a_promotion_leaves_it_as_it_is(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)

    honest = type(store).write_alias

    def then_unreachable(self, name, value, token):
        patch.setattr(type(store), "versions", unreachable)
        return honest(self, name, value, token)

    def unreachable(_):
        raise StoreError("cannot be reached")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be reached"):
        patch.setattr(type(store), "write_alias", then_unreachable)
        promote(store, second)
    assert resolve(store, "production") == second
    assert promote(store, second).after == second, "the same command ends it"
    assert resolve(store, "previous") == first
