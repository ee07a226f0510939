import unicodedata

import pytest

from srpo_core.scorers.subjects import subject_of

SUBJECTS = ("apple", "red apple", "Piñata")


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("a drawing of an apple", "apple"),
        ("a Red  Apple ", "red apple"),
        (unicodedata.normalize("NFD", "a piñata"), "Piñata"),
        ("a pineapple", None),
        ("an apple tree", None),
    ],
)
def test_a_prompt_names_the_longest_subject_at_its_end_in_any_spelling(prompt, subject):
    found = subject_of(prompt, SUBJECTS)
    assert (None if found is None else SUBJECTS[found]) == subject
