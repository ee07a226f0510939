"""Prompts as texts: when two are the same, their order, the texts of a split of this run, and that splits are disjoint."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from srpo_core.artifacts import EMBEDDINGS
from srpo_core.errors import ArtifactError, DataError

# Unicode's Default_Ignorable_Code_Point, the blank of Braille, and control characters that are no whitespace
_INVISIBLE: Final = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
TEXTS: Final = "texts"  # key of the metadata of runs/embed/<split>.safetensors


def normal_form(prompt: str) -> str:
    """Return the form in which two prompts are equal if they are the same prompt to a reader.

    Unicode's composed form (NFC), without case and invisible characters, and with one blank for each run of whitespace;
    none at the ends. Only comparisons use it: models receive the text as it was written.
    """
    if prompt.isascii() and prompt.isprintable():
        return " ".join(prompt.lower().split())
    prompt = _INVISIBLE.sub("", prompt)
    # folding case can decompose a character again, so the composed form is taken before and after it
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", prompt).casefold())
    return " ".join(folded.split())


def is_visible(text: str) -> bool:
    """Whether a text has a character that a reader sees."""
    return any(not sign.isspace() and unicodedata.category(sign) != "Cf" for sign in _INVISIBLE.sub("", text))


def balanced_order(prompts: Sequence[str], styles: Sequence[str], seed: int) -> list[int]:
    """Order prompts (N,) so that the first n of them have each style (N,) as often as all of them do, up to one prompt.

    Within a style the order is that of a hash of (seed, prompt). It does not depend on any figure, so nobody can choose
    which prompts come first. Returns indices into `prompts`.
    """
    hashed = [hashlib.sha256(repr((seed, "order", prompt)).encode()).hexdigest() for prompt in prompts]
    sizes = Counter(styles)
    rank: Counter[str] = Counter()
    place: dict[int, tuple[float, str]] = {}
    for index in sorted(range(len(prompts)), key=hashed.__getitem__):
        style = styles[index]
        place[index] = ((rank[style] + 0.5) / sizes[style], style)
        rank[style] += 1
    return sorted(place, key=place.__getitem__)


def read_texts(split: str, root: Path = Path()) -> list[str]:
    """Read the prompts of a split, which stage embed chose, from the directory `root` of a run.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return _read(split, root)["prompts"]


def read_styles(split: str, root: Path = Path()) -> list[str]:
    """Read the style of each prompt that `read_texts` returns. Raises as it does."""
    return _read(split, root)["styles"]


def require_unseen(prompts: Sequence[str]) -> None:
    """Require test prompts by which a model was neither trained nor selected, and disjoint splits for these two.

    Raises:
        DataError: two splits share a prompt, in any spelling.
        ArtifactError: see `read_texts`.
    """
    trained, chose = (read_texts(split) for split in ("train", "validation"))
    if both := _in_both(trained, chose):
        raise DataError(
            f"{len(both)} training prompts are also in {EMBEDDINGS}/validation.safetensors, for "
            f"instance {both[0]!r}: what a model was trained on cannot choose it; run 'dvc repro ingest embed'"
        )
    for split, texts, did in (
        ("train", trained, "was trained on"),
        ("validation", chose, "chose the checkpoint"),
    ):
        if both := _in_both(prompts, texts):
            raise DataError(
                f"{len(both)} test prompts are also in {EMBEDDINGS}/{split}.safetensors, for "
                f"instance {both[0]!r}, which {did}: remove them from one of the lists in ingest.source"
            )


def _in_both(prompts: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the prompts that are among the others in any spelling, sorted."""
    known = set(map(normal_form, others))
    return sorted(prompt for prompt in prompts if normal_form(prompt) in known)


def _read(split: str, root: Path) -> dict[str, list[str]]:
    from safetensors import SafetensorError, safe_open

    path = root / EMBEDDINGS / f"{split}.safetensors"
    if not path.exists():
        raise ArtifactError(f"{path} is missing: run 'dvc repro embed' first")
    try:
        with safe_open(path, framework="numpy") as file:
            texts = json.loads(file.metadata()[TEXTS])
            return {name: list(texts[name]) for name in ("prompts", "styles")}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): run 'dvc repro --force embed'") from error
