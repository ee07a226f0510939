"""Prompts as texts: when two are the same, in which order they are judged, and the texts of a split of this run."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from srpo_core.artifacts import EMBEDDINGS
from srpo_core.errors import ArtifactError

TEXTS: Final = "texts"  # key of the metadata of runs/embed/<split>.safetensors


def normal_form(prompt: str) -> str:
    """Return the form in which two prompts are equal if they are the same prompt to a reader.

    Unicode's composed form (NFC), without case, and with one blank for each run of whitespace; none at the ends. Only
    comparisons use it: models receive the text as it was written.
    """
    # folding case can decompose a character again, so the composed form is taken before and after it
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", prompt).casefold())
    return " ".join(folded.split())


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
