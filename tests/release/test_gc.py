"""Garbage collection, in a directory and in a bucket."""

from srpo_core.release import gc
from srpo_core.release.aliases import promote
from srpo_core.release.gc import collect_garbage
from srpo_core.release.references import resolve
from srpo_core.release.verify import verify


def test_gc_counts_the_versions_of_each_model_separately(store, publish):
    versions = [publish(1), publish(2), *(publish(number, model="flux") for number in (3, 4, 5))]
    assert collect_garbage(store, keep=2, delete=True).versions == (versions[2],)
    assert store.versions() == sorted({*versions} - {versions[2]})


def test_gc_keeps_the_newest_versions_aliased_versions_and_past_production_versions(store, publish):
    versions = [publish(number) for number in range(1, 7)]
    promote(store, versions[0])
    promote(store, versions[1])
    promote(store, versions[2])
    planned = collect_garbage(store, keep=1)
    assert planned.versions == (versions[3], versions[4])
    assert not planned.deleted
    assert store.versions() == versions
    assert collect_garbage(store, keep=1, delete=True).versions == planned.versions
    assert store.versions() == [*versions[:3], versions[5]]
    assert collect_garbage(store, keep=0).versions == (versions[5],)
    assert collect_garbage(store, keep=9).versions == ()


def test_gc_keeps_a_version_promoted_while_others_are_removed(store, publish, monkeypatch):
    versions = [publish(number) for number in range(1, 5)]
    kind = type(store)
    honest = kind.remove

    def promote_then_remove(self, versions_now, **options):
        promote(store, versions[1])
        return honest(self, versions_now, **options)

    monkeypatch.setattr(kind, "remove", promote_then_remove)
    assert collect_garbage(store, keep=1).versions == tuple(versions[:3])
    assert collect_garbage(store, keep=1, delete=True).versions == (versions[0], versions[2])
    assert store.versions() == [versions[1], versions[3]]
    assert verify(store, "production")["version"] == versions[1]


def test_gc_keeps_all_versions_if_there_are_fewer_than_keep(store, publish):
    versions = [publish(number) for number in range(1, 4)]
    assert collect_garbage(store, keep=5, delete=True).versions == ()
    assert store.versions() == versions


def test_a_version_promoted_while_it_is_removed_is_kept(store, publish, monkeypatch):
    first, second = publish(1), publish(2)
    promote(store, first)
    honest = gc.protected_versions

    def promote_meanwhile(store):
        protected = honest(store)
        with monkeypatch.context() as patch:
            patch.setattr(gc, "protected_versions", honest)
            promote(store, second)
        monkeypatch.setattr(gc, "protected_versions", honest)
        return protected

    monkeypatch.setattr(gc, "protected_versions", promote_meanwhile)
    assert gc.remove_unprotected(store, [second]) == []
    assert resolve(store, "production") == second
    assert verify(store, second)
