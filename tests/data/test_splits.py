import pytest

from srpo_core.data.splits import held_out_prompts
from srpo_core.errors import DataError

PROMPTS = [f"prompt {number}" for number in range(5000)]


def test_the_held_out_share_is_close_to_the_requested_share():
    assert len(held_out_prompts(PROMPTS, 0.2, 0)) == pytest.approx(1000, abs=4 * (5000 * 0.2 * 0.8) ** 0.5)


def test_adding_prompts_does_not_change_the_split_of_the_others():
    before = held_out_prompts(PROMPTS[:3000], 0.2, 0)
    after = held_out_prompts(PROMPTS[::-1], 0.2, 0)
    assert before == after & set(PROMPTS[:3000])


def test_spellings_of_one_prompt_are_held_out_together_in_any_order():
    spellings = [prompt.upper().replace(" ", "  ") for prompt in PROMPTS]
    chosen = held_out_prompts([*PROMPTS, *spellings], 0.2, 0)
    assert {prompt in chosen for prompt in PROMPTS} == {True, False}
    for prompt, spelling in zip(PROMPTS, spellings, strict=True):
        assert (prompt in chosen) == (spelling in chosen)
    assert chosen == held_out_prompts([*spellings, *PROMPTS][::-1], 0.2, 0)


def test_another_seed_holds_out_other_prompts():
    both = held_out_prompts(PROMPTS, 0.2, 0) & held_out_prompts(PROMPTS, 0.2, 1)
    assert len(both) == pytest.approx(200, abs=60)


def test_a_small_share_holds_out_one_prompt_and_a_zero_share_none():
    assert len(held_out_prompts(PROMPTS[:3], 1e-9, 0)) == 1
    assert held_out_prompts(PROMPTS, 0.0, 0) == frozenset()


def test_holding_out_everything_is_refused():
    with pytest.raises(DataError, match=r"validation_share 1\.0 holds out all 3 prompts"):
        held_out_prompts(PROMPTS[:3], 1.0, 0)
