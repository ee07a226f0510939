"""Which of a judge's subjects a prompt names."""

from collections.abc import Sequence

from srpo_core.prompts import normal_form


def subject_of(prompt: str, subjects: Sequence[str]) -> int | None:
    """Return the index of the longest subject name that the prompt ends with, at a word boundary; None if there is none."""
    text = f" {normal_form(prompt)}"
    ends = [index for index, name in enumerate(subjects) if text.endswith(f" {normal_form(name)}")]
    return max(ends, key=lambda index: len(subjects[index])) if ends else None
