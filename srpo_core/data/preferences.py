"""The preferences of a split in little memory, and the rules that compare records with each other.

HPDv2 has 798,000 pairs of 430,000 images and 107,000 prompts, so records are kept as numbers.
"""

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from srpo_core.data.choices import Choice, Place
from srpo_core.data.numbered import Numbered, first_of_equals
from srpo_core.data.rules import Findings, Problem
from srpo_core.prompts import normal_form

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Numbers = npt.NDArray[np.int64]

_BITS: Final = 32
_NO_IMAGE: Final = (1 << _BITS) - 1
_ROWS_AT_ONCE: Final = 65536


class Preferences:
    """The records of one split that break no rule, with the names of their prompts and images.

    trained: the training split, if this is the split test: a record with one of its prompts is not held out.
    """

    def __init__(self, split: str, findings: Findings, trained: "Preferences | None" = None) -> None:
        self.split = split
        self._findings, self._trained = findings, trained
        # numbers in order of appearance: files, prompts, normal forms of prompts, images
        self._files, self._texts, self._forms, self._names = (Numbered() for _ in range(4))
        self._form_of: dict[str, str] = {}  # of prompts that records have
        self._first = array("q")  # of a normal form: its first record
        # of a record: file, index in the file, prompt and its normal form
        self._file, self._index, self._text, self._form = array("q"), array("q"), array("q"), array("q")
        # of a use of images: record, preferred, rejected; a record without pairs uses its one image as preferred
        self._record, self._preferred, self._rejected = array("q"), array("q"), array("q")
        self._known: dict[int, int] = {}  # normal form, preferred and rejected as one number: the record
        self._removed: set[int] = set()

    def add(self, choice: Choice) -> None:
        """Take a record, unless it breaks a rule and is left out.

        Raises:
            DataError: it breaks a rule and ends the run.
        """
        pairs = list(choice.pairs())
        form = self._form_of.get(choice.prompt) or normal_form(choice.prompt)
        if self._has_no_preference(choice, pairs) or self._is_not_held_out(choice, form):
            return
        if self._is_another_spelling(choice, form):
            return
        number = self._forms.number_or_next(form)
        uses = self._uses(choice, pairs)
        if self._is_repeated(choice, number, uses) or self._is_contradicted(choice, number, uses):
            return
        record = len(self._file)
        if form not in self._forms:
            self._forms.number(form)
            self._first.append(record)
        self._file.append(self._files.number(choice.file))
        self._index.append(choice.record)
        self._text.append(self._texts.number(choice.prompt))
        self._form.append(number)
        self._form_of[choice.prompt] = form
        for preferred, rejected in uses:
            self._known.setdefault(_key(number, preferred, rejected), record)
            self._record.append(record)
            self._preferred.append(preferred)
            self._rejected.append(rejected)

    def forget_pairs(self) -> None:
        """Free the memory by which a record is compared with earlier ones. No record can be added afterwards."""
        self._known.clear()
        self._form_of.clear()

    def prompts(self) -> list[str]:
        """List the prompts of the records, in order of appearance."""
        import numpy as np

        texts = np.asarray(self._text, dtype=np.int64)[self._kept()]
        return [self._texts.name(number) for number in np.unique(texts).tolist()]

    def places(self) -> set[Place]:
        """Return the places of the records that are kept."""
        kept = self._kept()
        return {self._place(record) for record in range(len(kept)) if kept[record]}

    def captions(self) -> list[tuple[str, str, str]]:
        """List (split, prompt, image) of the records that have one image and no preference."""
        record, image, rejected = self._pairs()
        chosen = self._kept()[record] & (rejected == _NO_IMAGE) & (image != _NO_IMAGE)
        return [
            (self.split, self._texts.name(self._text[one]), f"{self.split}/{self._names.name(number)}")
            for one, number in zip(record[chosen].tolist(), image[chosen].tolist(), strict=True)
        ]

    def has(self, prompt: str) -> bool:
        """Whether a record that was not removed has the prompt, in any spelling."""
        return self._find(normal_form(prompt)) is not None

    def images(self) -> list[str]:
        """List the images that the records use, sorted by name."""
        import numpy as np

        _, images = self._images_of_records()
        return sorted(self._names.name(number) for number in np.unique(images).tolist())

    def place(self, prompt: str) -> tuple[str, Place] | None:
        """Find a prompt in any spelling: that of its first record that was not removed, and the place; None without one."""
        return self._find(normal_form(prompt))

    def report_images(self, rule: str, details: Mapping[str, str]) -> None:
        """Report that images break a rule, and remove the records that use them if they must be left out.

        details: by the name of an image, what is wrong. If records are kept, each image is reported once, with its
        first record.

        Raises:
            DataError: the rule ends the run; the error names the first record.
        """
        import numpy as np

        wrong = {self._names.number(name): detail for name, detail in details.items()}
        if not wrong:
            return
        records, images = self._images_of_records()
        found = np.isin(images, list(wrong))
        removes, seen = self._findings.leaves_out(rule), set[int]()
        for record, image in zip(records[found].tolist(), images[found].tolist(), strict=True):
            one = record if removes else image
            if one not in seen:
                seen.add(one)
                self._remove(record, rule, wrong[image])

    def count_users(self, names: Iterable[str]) -> dict[str, int]:
        """Count the records by file that use at least one of these images; removed records count, too."""
        import numpy as np

        record, *images = self._pairs()
        found = np.isin(images, [self._names.number(name) for name in names]).any(axis=0)
        files, numbers = np.unique(np.asarray(self._file)[np.unique(record[found])], return_counts=True)
        return {
            self._files.name(file): own for file, own in zip(files.tolist(), numbers.tolist(), strict=True)
        }

    def pair_tables(self) -> "Iterator[pa.Table]":
        """Yield tables of (split, prompt, preferred, rejected), some rows at a time, in the order of the records.

        A pair that several rankings of a prompt contain is a row of the first of them.
        """
        import numpy as np
        import pyarrow as pa

        record, preferred, rejected = self._pairs()
        chosen = np.flatnonzero(self._kept()[record] & (rejected != _NO_IMAGE))
        form = np.asarray(self._form, dtype=np.int64)[record]
        chosen = first_of_equals(chosen, (form, preferred, rejected))
        text = np.asarray(self._text, dtype=np.int64)[record]
        columns = [column[chosen] for column in (text, preferred, rejected)]
        texts = pa.array(self._texts.names, pa.string())
        paths = pa.array([f"{self.split}/{name}" for name in self._names.names], pa.string())
        for start in range(0, len(chosen), _ROWS_AT_ONCE):
            rows = [pa.array(column[start : start + _ROWS_AT_ONCE]) for column in columns]
            splits = pa.array([self.split] * len(rows[0]), pa.string())
            yield pa.table(
                [splits, texts.take(rows[0]), paths.take(rows[1]), paths.take(rows[2])],
                ["split", "prompt", "preferred", "rejected"],
            )

    def _has_no_preference(self, choice: Choice, pairs: list[tuple[str, str]]) -> bool:
        if pairs or len(choice.images) <= 1:
            return False
        return self._report(choice, "tied_record", "all images have the same rank, so none is preferred")

    def _is_not_held_out(self, choice: Choice, form: str) -> bool:
        found = self._trained._find(form) if self._trained else None
        if found is None:
            return False
        text, (file, record) = found
        detail = f"prompt {choice.prompt!r} is also in {file}{_as(text, choice.prompt)} (record {record})"
        return self._report(choice, "trained_test_prompt", detail)

    def _is_another_spelling(self, choice: Choice, form: str) -> bool:
        found = None if choice.prompt in self._texts else self._find(form)
        if found is None:
            return False
        file, record = found[1]
        detail = f"prompt {choice.prompt!r} is another spelling of that of {file}, record {record}"
        return self._report(choice, "prompt_spelling", detail)

    def _uses(self, choice: Choice, pairs: list[tuple[str, str]]) -> list[tuple[int, int]]:
        """Return (preferred, rejected) as numbers; a record without pairs has one entry, without a rejected image."""
        number = self._names.number
        if not pairs:
            return [(number(choice.images[0]) if choice.images else _NO_IMAGE, _NO_IMAGE)]
        return [(number(better), number(worse)) for better, worse in pairs]

    def _is_repeated(self, choice: Choice, form: int, uses: list[tuple[int, int]]) -> bool:
        earlier = [self._known.get(_key(form, preferred, rejected)) for preferred, rejected in uses]
        if earlier[0] is None or None in earlier:
            return False
        return self._report(choice, "doubled_record", f"says the same as {self._other(earlier[0])}")

    def _is_contradicted(self, choice: Choice, form: int, uses: list[tuple[int, int]]) -> bool:
        for preferred, rejected in uses:
            other = self._known.get(_key(form, rejected, preferred))
            if other is not None:
                better, worse = self._names.name(preferred), self._names.name(rejected)
                detail = f"prefers {better!r} to {worse!r}, contrary to "
                left_out = self._report(choice, "contradiction", detail + self._other(other))
                if left_out and other not in self._removed:
                    self._remove(
                        other, "contradiction", f"is contradicted by {choice.file}, record {choice.record}"
                    )
                return left_out
        return False

    def _report(self, choice: Choice, rule: str, detail: str) -> bool:
        text = {"prompt": choice.prompt, "images": choice.images, "ranks": choice.ranks}
        return self._findings.report(
            Problem(choice.file, choice.record, rule, detail, json.dumps(text, ensure_ascii=False))
        )

    def _remove(self, record: int, rule: str, detail: str) -> None:
        """Report a record that was taken, and remove it if it must be left out."""
        file, index = self._place(record)
        text = json.dumps(self._content(record)) if self._findings.leaves_out(rule) else ""
        if self._findings.report(Problem(file, index, rule, detail, text)):
            self._removed.add(record)

    def _content(self, record: int) -> dict[str, Any]:
        uses = range(bisect_left(self._record, record), bisect_right(self._record, record))
        numbers = [(self._preferred[use], self._rejected[use]) for use in uses]
        pairs = [[self._names.name(one) for one in pair if one != _NO_IMAGE] for pair in numbers]
        return {"prompt": self._texts.name(self._text[record]), "preferred and rejected": pairs}

    def _find(self, form: str) -> tuple[str, Place] | None:
        record = self._first_kept(self._forms.number(form)) if form in self._forms else None
        return None if record is None else (self._texts.name(self._text[record]), self._place(record))

    def _first_kept(self, form: int) -> int | None:
        """Return the first record with a normal form that was not removed."""
        import numpy as np

        first = self._first[form]
        if first not in self._removed:
            return first
        others = np.flatnonzero(np.asarray(self._form)[first:] == form) + first
        kept = next((record for record in others.tolist() if record not in self._removed), None)
        if kept is not None:
            self._first[form] = kept
        return kept

    def _other(self, record: int) -> str:
        file, index = self._place(record)
        return f"{file}, record {index}"

    def _place(self, record: int) -> Place:
        return self._files.name(self._file[record]), self._index[record]

    def _kept(self) -> "npt.NDArray[np.bool_]":
        import numpy as np

        kept = np.ones(len(self._file), dtype=bool)
        kept[list(self._removed)] = False
        return kept

    def _pairs(self) -> "tuple[Numbers, Numbers, Numbers]":
        import numpy as np

        record, preferred, rejected = (
            np.asarray(column, dtype=np.int64) for column in (self._record, self._preferred, self._rejected)
        )
        return record, preferred, rejected

    def _images_of_records(self) -> "tuple[Numbers, Numbers]":
        """Return the records that were not removed and their images, as numbers of equal length, in order of the records."""
        import numpy as np

        record, preferred, rejected = self._pairs()
        records, images = np.repeat(record, 2), np.stack([preferred, rejected], 1).reshape(-1)
        chosen = self._kept()[records] & (images != _NO_IMAGE)
        return records[chosen], images[chosen]


def _key(form: int, preferred: int, rejected: int) -> int:
    return (((form << _BITS) | preferred) << _BITS) | rejected


def _as(text: str, prompt: str) -> str:
    return "" if text == prompt else f" as {text!r}"
