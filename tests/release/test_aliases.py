"""Aliases: promote, roll back and concurrent moves, in a directory and in a bucket."""

import threading

import pytest

from srpo_core.errors import ConfigError, GateError, StoreError
from srpo_core.release import aliases
from srpo_core.release.aliases import move_alias, promote, rollback
from srpo_core.release.references import history_of, resolve
from srpo_core.storage import open_store


def test_promote_records_the_previous_version_and_rollback_returns_to_it(store, publish):
    first, second = publish(1), publish(2)
    assert (promote(store, first, who="ann").before, resolve(store, "production")) == (None, first)
    move = promote(store, second, reason="sharper", who="ben")
    assert (move.before, move.after) == (first, second)
    assert (resolve(store, "production"), resolve(store, "previous")) == (second, first)
    assert rollback(store, reason="too sharp", who="ann").after == first
    assert (resolve(store, "production"), resolve(store, "previous")) == (first, second)
    moves = history_of(store, second)["tiny/production"]
    steps = [(step["who"], step["why"], step["from"], step["to"]) for step in moves]
    assert steps == [("ben", "sharper", first, second), ("ann", "too sharp", second, first)]


def test_promoting_the_production_version_changes_nothing(store, publish):
    version = publish(1)
    promote(store, version)
    promote(store, version)
    assert len(store.alias("tiny/production")[0]["history"]) == 1


def killed(*_, **__):
    raise KeyboardInterrupt


def test_repeating_a_killed_promotion_updates_the_previous_version(store, publish, monkeypatch):
    first, second, third = publish(1), publish(2), publish(3)
    promote(store, first)
    promote(store, second)

    for act, after, before in (
        (lambda: promote(store, third), third, second),
        (lambda: rollback(store), second, third),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("srpo_core.release.aliases.move_alias", killed)
            act()
        assert resolve(store, "production") == after
        assert resolve(store, "previous") != before
        steps = store.alias("tiny/production")[0]["history"]
        move = promote(store, after)
        assert (move.before, move.after) == (after, after)
        assert resolve(store, "previous") == before
        assert store.alias("tiny/production")[0]["history"] == steps


def test_repeating_a_killed_rollback_completes_it(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    promote(store, second)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("srpo_core.release.aliases.move_alias", killed)
        rollback(store, reason="too sharp")
    move = rollback(store, reason="too sharp")
    assert (move.before, move.after) == (first, first)
    assert (resolve(store, "production"), resolve(store, "previous")) == (first, second)


def test_repeating_a_rollback_never_restores_the_bad_release(store, publish):
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
    assert rollback(store).after == second, "a new promotion can be rolled back"


def test_rollback_undoes_a_killed_promotion(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("srpo_core.release.aliases.move_alias", killed)
        promote(store, second)
    assert rollback(store).after == first


def test_a_promotion_overtaken_by_a_later_one_keeps_the_aliases_of_the_later_one(store, publish, monkeypatch):
    first, second, third = publish(1), publish(2), publish(3)
    promote(store, first)
    honest = aliases.move_alias

    def overtaken(*arguments, **options):
        monkeypatch.setattr(aliases, "move_alias", honest)
        promote(store, third)
        return honest(*arguments, **options)

    monkeypatch.setattr(aliases, "move_alias", overtaken)
    promote(store, second)
    assert (resolve(store, "production"), resolve(store, "previous")) == (third, second)


def test_a_refused_model_needs_an_override_and_a_reason_which_is_recorded(store, publish):
    version = publish(1, passed=False)
    with pytest.raises(GateError, match=r"refused tiny-1: the subject is lost\. .*--override --reason"):
        promote(store, version, reason="please")
    with pytest.raises(ConfigError, match="--override needs --reason"):
        promote(store, version, override=True)
    assert store.alias("tiny/production")[0] is None
    promote(store, version, override=True, reason="a demo for the board")
    assert store.alias("tiny/production")[0]["history"][0]["why"] == "override: a demo for the board"


def test_each_model_has_its_own_production(store, publish):
    tiny, flux = [publish(1), publish(2)], [publish(number, model="flux-dev") for number in (3, 4)]
    for version in (*tiny, *flux):
        promote(store, version)
    assert resolve(store, "tiny/production") == tiny[1]
    assert resolve(store, "flux-dev/production") == flux[1]
    with pytest.raises(StoreError, match="choose one of flux-dev/production, tiny/production"):
        resolve(store, "production")
    with pytest.raises(StoreError, match="choose one of flux-dev/production, tiny/production"):
        rollback(store)
    move = rollback(store, model="flux-dev")
    assert (move.alias, move.before, move.after) == ("flux-dev/production", flux[1], flux[0])
    assert resolve(store, "flux-dev/previous") == flux[1]
    assert resolve(store, "tiny/production") == tiny[1]


def test_rollback_needs_a_previous_version(store, publish):
    with pytest.raises(StoreError, match="has no previous version"):
        rollback(store)
    promote(store, publish(1))
    with pytest.raises(StoreError, match="has no previous version"):
        rollback(store)


def test_one_of_eight_concurrent_promotions_succeeds_and_the_others_fail(store, publish, monkeypatch):
    versions = [publish(number) for number in range(1, 9)]
    barrier, outcomes = threading.Barrier(8), []
    kind = type(store)
    honest = kind.manifest

    def together(self, version):  # every thread has read the alias before this call
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
            assert "another process moved tiny/production" in str(error)
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


def remove_after_the_next_move(store, version, monkeypatch):
    """Remove the version as a concurrent `gc` does: after the next alias is written and before it is checked."""
    kind, honest = type(store), type(store).write_alias

    def write_then_remove(self, name, value, token):
        done = honest(self, name, value, token)
        monkeypatch.setattr(kind, "write_alias", honest)
        self.remove([version])
        return done

    monkeypatch.setattr(kind, "write_alias", write_then_remove)


def test_a_version_removed_during_its_promotion_leaves_production_unchanged(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    remove_after_the_next_move(store, second, monkeypatch)
    before = store.alias("tiny/production")[0]
    with pytest.raises(StoreError, match=f"{second} was removed from .* at the same time"):
        promote(store, second)
    assert store.alias("tiny/production")[0] == before, "the history has no step to a removed version"
    assert promote(store, publish(3)).before == first
    assert rollback(store).after == first


def test_a_version_removed_during_the_first_promotion_leaves_production_empty(store, publish, monkeypatch):
    first = publish(1)
    remove_after_the_next_move(store, first, monkeypatch)
    with pytest.raises(StoreError, match="was removed from"):
        promote(store, first)
    assert store.alias("tiny/production")[0]["version"] is None
    second = publish(2)
    assert promote(store, second).before is None
    assert resolve(store, "production") == second


def test_a_promotion_survives_a_store_that_fails_right_after_it(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)

    honest = type(store).write_alias

    def then_unreachable(self, name, value, token):
        patch.setattr(type(store), "has", unreachable)
        return honest(self, name, value, token)

    def unreachable(*_):
        raise StoreError("cannot be reached")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be reached"):
        patch.setattr(type(store), "write_alias", then_unreachable)
        promote(store, second)
    assert resolve(store, "production") == second
    assert promote(store, second).after == second, "repeating the command completes it"
    assert resolve(store, "previous") == first


def test_an_alias_cannot_point_to_an_unknown_version(store):
    with pytest.raises(StoreError, match="no version 'tiny-0': known are none"):
        move_alias(store, "tiny/production", "tiny-0", why="hope")
    assert store.aliases() == []


def test_moving_an_alias_fails_after_five_attempts_if_others_keep_moving_it(release, monkeypatch):
    store, published = release
    monkeypatch.setattr(type(store), "write_alias", lambda *_: False)
    with pytest.raises(StoreError, match="other writers moved the alias tiny/production"):
        move_alias(store, "tiny/production", published.version, why="race")
