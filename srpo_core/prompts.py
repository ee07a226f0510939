"""Prompts as texts: the normal form that decides which are the same, and the texts of a split of this run."""

import json
import unicodedata
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


def read_texts(split: str, root: Path = Path()) -> list[str]:
    """Read the prompts of a split, which stage embed chose, from the directory `root` of a run.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = root / EMBEDDINGS / f"{split}.safetensors"
    if not path.exists():
        raise ArtifactError(f"{path} is missing: run 'dvc repro embed' first")
    try:
        with safe_open(path, framework="numpy") as file:
            texts: list[str] = json.loads(file.metadata()[TEXTS])["prompts"]
            return texts
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): run 'dvc repro --force embed'") from error
