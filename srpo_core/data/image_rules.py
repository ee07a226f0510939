"""The rules for the images of a data set: missing, unreadable, too small, too long, and equal ones."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from srpo_core.data.decoded_images import DecodedImage
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import LARGEST_ASPECT, SHORTEST_SIDE, Findings


class ImageChecks:
    """Check images of all splits, some at a time, and report each problem of an image once.

    preferences: by split. What ends the run is reported at once.
    """

    def __init__(self, preferences: Mapping[str, Preferences], findings: Findings) -> None:
        self._preferences, self._findings = preferences, findings
        self._details: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._digests: dict[str, dict[str, bytes]] = {split: {} for split in preferences}
        self._sizes: dict[str, dict[str, tuple[int, int] | None]] = {split: {} for split in preferences}
        self._same_sizes: dict[
            tuple[int, int], tuple[int, int]
        ] = {}  # a tuple for each size, not for each image
        self._reported: set[tuple[str, str, str]] = set()

    def unchecked(self, split: str, names: Iterable[str]) -> list[str]:
        """List those names of images that were not given to `missing` or `decoded`."""
        return [name for name in names if name not in self._sizes[split]]

    def size(self, split: str, name: str) -> tuple[int, int] | None:
        """Return width and height of an image that was checked; None if there is none that can be decoded."""
        return self._sizes[split][name]

    def missing(self, split: str, names: Sequence[str], where: Path, num_names: int) -> None:
        """Note that images are not in `where`; num_names: the number that was looked for."""
        of = f"({len(names)} of {num_names} images are missing)"
        for name in names:
            self._sizes[split][name] = None
            self._note(split, "missing_image", name, f"image {name!r} is not in {where} {of}")

    def decoded(self, split: str, image: DecodedImage, where: Path) -> None:
        """Check an image: whether it can be decoded, and its width and height in pixels."""
        size = image.size
        if size is None:
            self._sizes[split][image.name] = None
            if image.is_empty:  # an empty cell of a table, or a file that was never filled
                detail = f"image {image.name!r} of {where} is empty: it has no byte"
                self._note(split, "missing_image", image.name, detail)
                return
            detail = f"image {image.name!r} of {where} cannot be decoded: {image.problem}"
            self._note(split, "unreadable_image", image.name, detail)
            return
        short, long = sorted(size)
        shown = f"image {image.name!r} has {size[0]} x {size[1]} pixels"
        if short < SHORTEST_SIDE:
            detail = f"{shown}: each side must have at least {SHORTEST_SIDE}"
            self._note(split, "small_image", image.name, detail)
        elif long > LARGEST_ASPECT * short:
            self._note(
                split, "elongated_image", image.name, f"{shown}: at most {LARGEST_ASPECT} to 1 is allowed"
            )
        self._digests[split][image.name] = image.digest
        self._sizes[split][image.name] = self._same_sizes.setdefault(size, size)

    def report(self) -> None:
        """Report what was noted since the last report, and images that are equal.

        Raises:
            DataError: this ends the run.
        """
        users = Counter[str]()  # a table without splits has records of both
        for split, sizes in self._sizes.items():
            users.update(self._preferences[split].count_users(sizes))
        self._findings.set_with_checked_images(users)
        for (split, rule), details in self._details.items():
            self._report(split, rule, details)
        trained = _first_names(self._digests.get("train", {}))
        for split, digests in self._digests.items():
            first = _first_names(digests)
            repeated = {name: first[digest] for name, digest in digests.items() if first[digest] != name}
            details = {
                name: f"image {name!r} is equal to {other!r} of the same split"
                for name, other in repeated.items()
            }
            self._report(split, "equal_images", details)
            if split != "train":
                details = {
                    name: f"image {name!r} is equal to {trained[digest]!r} of the split train"
                    for name, digest in digests.items()
                    if digest in trained
                }
                self._report(split, "trained_test_image", details)

    def _report(self, split: str, rule: str, details: Mapping[str, str]) -> None:
        fresh = {name: what for name, what in details.items() if (split, rule, name) not in self._reported}
        self._reported.update((split, rule, name) for name in fresh)
        self._preferences[split].report_images(rule, fresh)

    def _note(self, split: str, rule: str, name: str, detail: str) -> None:
        if self._findings.ends_run(rule):
            self._report(split, rule, {name: detail})
        self._details[split, rule][name] = detail


def _first_names(digests: Mapping[str, bytes]) -> dict[bytes, str]:
    first: dict[bytes, str] = {}
    for name, digest in digests.items():
        first.setdefault(digest, name)
    return first
