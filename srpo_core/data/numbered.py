"""Numbers in place of names."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.int64]


class Numbered:
    """Names, numbered in the order in which they appear."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """Return the number of a name, a new one if it is new."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def number_or_next(self, name: str) -> int:
        """Return the number of a name, or the one that it would have, without taking it."""
        return self._numbers.get(name, len(self.names))

    def name(self, number: int) -> str:
        """Return the name with a number."""
        return self.names[number]


def first_of_equals(rows: "Numbers", columns: "tuple[Numbers, ...]") -> "Numbers":
    """Return the rows, ascending, that have no earlier one among them with the same values in all columns."""
    import numpy as np

    values = np.stack([column[rows] for column in columns])
    order = np.lexsort(values)  # stable, so the first of equal rows stays the first
    ordered = values[:, order]
    repeats = (ordered[:, 1:] == ordered[:, :-1]).all(axis=0)
    return np.delete(rows, order[1:][repeats])
