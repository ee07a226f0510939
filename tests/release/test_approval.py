"""A person approves or rejects a candidate, in a directory and in a bucket."""

import pytest

from srpo_core.errors import ConfigError, GateError, StoreError
from srpo_core.release import aliases, approval
from srpo_core.release.aliases import move_alias, promote
from srpo_core.release.approval import approve, reject
from srpo_core.release.references import in_production, resolve
from srpo_core.release.store_page import store_page
from srpo_core.release.summary import describe
from srpo_core.release.verify import verify_aliases


@pytest.fixture
def candidates(store, publish):
    """Two versions: the first is in production, the second is the candidate."""
    first, second = publish(1), publish(2)
    promote(store, first)
    move_alias(store, "tiny/candidate", second, why="run 7")
    return first, second


def production_steps(store):
    return [(step["who"], step["why"]) for step in store.alias("tiny/production")[0]["history"]]


def test_an_approved_candidate_is_production_and_its_history_has_who_and_why(store, candidates):
    first, second = candidates
    move = approve(store, "candidate", why="hands are right", who="Ada", champion=first)
    assert (move.before, move.after, resolve(store, "previous")) == (first, second, first)
    assert production_steps(store)[-1] == ("Ada", "approved: hands are right")
    assert any(line.endswith("by Ada: approved: hands are right") for line in describe(store, second))
    assert approve(store, second, why="again", champion=first).before == second
    assert len(production_steps(store)) == 2


def test_a_candidate_that_changed_is_not_approved_and_production_stays(store, publish, candidates):
    first, second = candidates
    move_alias(store, "tiny/candidate", publish(3), why="run 8")
    message = f"^{second} is not the candidate of tiny any more, tiny-3 is: nothing was promoted; look at"
    with pytest.raises(StoreError, match=message):
        approve(store, second, why="good", champion=first)
    assert in_production(store, "tiny") == first


def test_a_candidate_is_not_approved_if_another_release_is_in_production_than_it_was_compared_with(
    store, publish, candidates
):
    first, second = candidates
    promote(store, publish(3))
    message = (
        f"^{second} was compared with {first}, and tiny-3 is in production since then: nothing was promoted"
    )
    with pytest.raises(StoreError, match=message):
        approve(store, second, why="good", champion=first)
    with pytest.raises(StoreError, match="was compared with no release in production, and tiny-3 is"):
        approve(store, second, why="good", champion=None)
    assert in_production(store, "tiny") == "tiny-3"
    assert approve(store, second, why="compared by hand").before == "tiny-3"


def test_a_promotion_between_the_comparison_and_the_write_is_not_overwritten(
    store, publish, candidates, monkeypatch
):
    first, second = candidates
    third = publish(3)

    def promote_late(store, version, **given):
        promote(store, third)
        return promote(store, version, **given)

    monkeypatch.setattr(approval, "promote", promote_late)
    with pytest.raises(
        StoreError, match=f"another process moved tiny/production to {third} at the same time"
    ):
        approve(store, second, why="good", champion=first)
    assert in_production(store, "tiny") == third


def test_a_candidate_that_the_gate_refused_cannot_be_approved(store, publish):
    move_alias(store, "tiny/candidate", publish(1, passed=False), why="by hand")
    with pytest.raises(GateError, match="the gate refused tiny-1: the subject is lost"):
        approve(store, "candidate", why="it looks good")
    assert in_production(store, "tiny") is None


def test_a_rejection_is_in_the_history_of_its_release_alone_and_moves_nothing(store, publish, candidates):
    first, second = candidates
    assert reject(store, "candidate", why="hands look\x1b[31m\nwrong", who="Ada") == second
    third = publish(3)
    move_alias(store, "tiny/candidate", third, why="run 8")
    reject(store, second, why="still wrong", who="Ben")
    assert (resolve(store, "candidate"), in_production(store, "tiny")) == (third, first)
    lines = [line for line in describe(store, second) if " rejected  by " in line]
    assert [line.partition("  by ")[2] for line in lines] == [
        "Ada: rejected: hands look [31m wrong",
        "Ben: rejected: still wrong",
    ]
    assert not any("rejected" in line for name in (first, third) for line in describe(store, name))
    page = store_page(store)
    assert page.count("<h3>Rejected</h3>") == 1
    assert page.count("rejected: still wrong") == 1
    assert not verify_aliases(store)


def test_a_release_in_production_cannot_be_rejected(store, candidates):
    first, _ = candidates
    with pytest.raises(
        StoreError, match=f"^{first} is in production, so it cannot be rejected: 'srpo rollback"
    ):
        reject(store, first, why="late")


def test_a_rejected_release_can_still_be_approved(store, candidates):
    first, second = candidates
    reject(store, second, why="in doubt", who="Ada")
    approve(store, second, why="looked again", who="Ben", champion=first)
    assert in_production(store, "tiny") == second


@pytest.mark.parametrize("decide", [approve, reject])
@pytest.mark.parametrize("why", ["", " \n"])
def test_a_decision_needs_a_reason(store, candidates, decide, why):
    with pytest.raises(ConfigError, match="a decision needs a reason"):
        decide(store, "candidate", why=why)
    assert in_production(store, "tiny") == candidates[0]


def test_a_rejection_gives_up_after_five_attempts_if_others_keep_moving_the_alias(
    store, candidates, monkeypatch
):
    monkeypatch.setattr(aliases, "_write_move", lambda *_, **__: False)
    with pytest.raises(
        StoreError, match=r"other writers moved the alias tiny/candidate in .* each of 5 attempts"
    ):
        reject(store, "candidate", why="wrong")
