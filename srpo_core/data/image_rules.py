"""The rules for the images of a data set: missing, unreadable, too small, too long, and equal ones."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from srpo_core.data.images import ImageSource
from srpo_core.data.preferences import Preferences
from srpo_core.data.rules import LARGEST_ASPECT, SHORTEST_SIDE, Findings


def report_missing(stored: ImageSource, preferences: Preferences) -> None:
    """Report the records whose images `stored` does not have.

    Raises:
        DataError: this ends the run.
    """
    names = preferences.images()
    missing = [name for name in names if name not in stored]
    of = f"({len(missing)} of {len(names)} images are missing)"
    preferences.report_images(
        "missing_image", {name: f"image {name!r} is not in {stored.where} {of}" for name in missing}
    )


class ImageChecks:
    """Collect what is wrong with the images of all splits while they are decoded, and report it at the end.

    preferences: by split. What ends the run is reported at once.
    """

    def __init__(self, preferences: Mapping[str, Preferences], findings: Findings) -> None:
        self._preferences, self._findings = preferences, findings
        self._details: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._digests: dict[str, dict[str, bytes]] = {split: {} for split in preferences}

    def unreadable(self, split: str, name: str, where: Path, reason: str) -> None:
        """Note that an image cannot be decoded."""
        self._note(split, "unreadable_image", name, f"image {name!r} of {where} cannot be decoded: {reason}")

    def decoded(self, split: str, name: str, content: bytes, size: tuple[int, int]) -> None:
        """Check an image: its bytes, and its width and height in pixels."""
        short, long = sorted(size)
        shown = f"image {name!r} has {size[0]} x {size[1]} pixels"
        if short < SHORTEST_SIDE:
            self._note(split, "small_image", name, f"{shown}: each side must have at least {SHORTEST_SIDE}")
        elif long > LARGEST_ASPECT * short:
            self._note(split, "elongated_image", name, f"{shown}: at most {LARGEST_ASPECT} to 1 is allowed")
        self._digests[split][name] = hashlib.sha256(content).digest()[:16]

    def report(self) -> None:
        """Report what was noted, and images that are equal.

        Raises:
            DataError: this ends the run.
        """
        for (split, rule), details in self._details.items():
            self._preferences[split].report_images(rule, details)
        trained = _first_names(self._digests.get("train", {}))
        for split, digests in self._digests.items():
            first = _first_names(digests)
            repeated = {name: first[digest] for name, digest in digests.items() if first[digest] != name}
            details = {
                name: f"image {name!r} is equal to {other!r} of the same split"
                for name, other in repeated.items()
            }
            self._preferences[split].report_images("equal_images", details)
            if split != "train":
                details = {
                    name: f"image {name!r} is equal to {trained[digest]!r} of the split train"
                    for name, digest in digests.items()
                    if digest in trained
                }
                self._preferences[split].report_images("trained_test_image", details)

    def _note(self, split: str, rule: str, name: str, detail: str) -> None:
        if self._findings.ends_run(rule):
            self._preferences[split].report_images(rule, {name: detail})
        self._details[split, rule][name] = detail


def _first_names(digests: Mapping[str, bytes]) -> dict[bytes, str]:
    first: dict[bytes, str] = {}
    for name, digest in digests.items():
        first.setdefault(digest, name)
    return first
