"""What changed between two data sets: records added, removed and changed, images replaced, benchmark prompts."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from srpo_core.data.choices import BenchmarkPrompt, Choice
from srpo_core.data.kept import KeptRecords
from srpo_core.data.sources.table_images import is_within_table
from srpo_core.prompts import normal_form

EXAMPLES = 5


@dataclass
class Changes:
    """Records of one split, by prompt and images. examples: the first prompts of each kind of change.

    changed: the same prompt and images with another order, or with an image of other bytes. A record that is there
    several times counts as often.
    """

    added: int = 0
    removed: int = 0
    changed: int = 0
    unchanged: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, kind: str, prompt: str) -> None:
        """Count one record, and keep its prompt as an example if it is one of the first."""
        setattr(self, kind, getattr(self, kind) + 1)
        shown = self.examples.setdefault(kind, [])
        if kind != "unchanged" and len(shown) < EXAMPLES and prompt not in shown:
            shown.append(prompt)


def record_changes(old: Iterable[Choice], new: Iterable[Choice], replaced: set[str]) -> Changes:
    """Compare the records of a split. A digest and the prompt of each old record are in memory.

    replaced: names of images whose bytes differ, see `replaced_images`.
    """
    changes, before = Changes(), dict[bytes, list[tuple[bytes, str]]]()
    for choice in old:
        before.setdefault(_key(choice), []).append((_order(choice), choice.prompt))
    others: list[tuple[bytes, str]] = []
    for choice in new:
        left = before.get(_key(choice), [])
        same = next((place for place, (order, _) in enumerate(left) if order == _order(choice)), None)
        if same is None:  # another order, or a new record: known when all equal ones are taken away
            others.append((_key(choice), choice.prompt))
            continue
        left.pop(same)
        changes.count("unchanged" if replaced.isdisjoint(choice.images) else "changed", choice.prompt)
    for key, prompt in others:
        if before.get(key):
            before[key].pop()
            changes.count("changed", prompt)
        else:
            changes.count("added", prompt)
    for left in before.values():
        for _, prompt in left:
            changes.count("removed", prompt)
    return changes


def benchmark_changes(old: Iterable[BenchmarkPrompt], new: Iterable[BenchmarkPrompt]) -> Changes:
    """Compare the prompts of the benchmark; one that moved to another style is changed."""
    changes = Changes()
    before = {normal_form(entry.prompt): entry for entry in old}
    for entry in new:
        known = before.pop(normal_form(entry.prompt), None)
        if known is None:
            changes.count("added", entry.prompt)
        else:
            changes.count("unchanged" if known.style == entry.style else "changed", entry.prompt)
    for entry in before.values():
        changes.count("removed", entry.prompt)
    return changes


def named_by_content(source: KeptRecords, split: str) -> Iterator[Choice]:
    """Yield the records of a split with images that are within a table named by a digest of their bytes.

    Their own names say the file and the row, which change if a row is inserted before them. A digest of each is in memory.

    Raises:
        DataError: an image cannot be read.
    """
    names = sorted(name for name in _names(source.choices(split)) if is_within_table(name))
    digests: dict[str, str] = {}
    if names:
        with source.images(split) as images:
            digests = {name: hashlib.blake2b(images.read(name), digest_size=16).hexdigest() for name in names}
    for choice in source.choices(split):
        yield replace(choice, images=tuple(digests.get(name, name) for name in choice.images))


def replaced_images(old: KeptRecords, new: KeptRecords, split: str) -> set[str]:
    """Read the images of a split that both data sets use, and return the names of those with other bytes.

    Those within tables are left out: `named_by_content`.

    Raises:
        DataError: an image cannot be read.
    """
    common = _names(old.choices(split)) & _names(new.choices(split))
    names = {name for name in common if not is_within_table(name)}
    if not names:
        return set()
    with ExitStack() as stack:
        before, after = (stack.enter_context(source.images(split)) for source in (old, new))
        return {name for name in sorted(names) if before.read(name) != after.read(name)}


def _names(choices: Iterator[Choice]) -> set[str]:
    return {name for choice in choices for name in choice.images}


def _key(choice: Choice) -> bytes:
    return _digest(choice.prompt, *sorted(choice.images))


def _order(choice: Choice) -> bytes:
    """Digest the order of the images: which are preferred to which, whatever the ranks are as numbers."""
    return _digest(*(f"{better}\0{worse}" for better, worse in sorted(choice.pairs())))


def _digest(*parts: str) -> bytes:
    seen = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        seen.update(len(encoded).to_bytes(8, "big") + encoded)
    return seen.digest()
