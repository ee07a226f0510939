"""Captions and the two tokenizers that FLUX needs, trained on the names of the pictures."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from tiny_family.pictures import STYLES

CLIP_TOKENS: Final = 16
T5_TOKENS: Final = 12
WORD: Final = "\N{LOWER ONE EIGHTH BLOCK}"  # begins a word, as sentencepiece has it


def caption(subject: str, style: int | None = None) -> str:
    """The name, with a style word in front or without: "3D. red apple"."""
    return subject if style is None else f"{STYLES[style]}. {subject}"


def drawn_captions(
    subjects: Sequence[str], styles: Tensor, generator: torch.Generator, null: float
) -> list[str]:
    """A style word before half of the captions, and a share `null` of empty ones."""
    draw = torch.rand(len(subjects), generator=generator).tolist()
    named = (1 - null) / 2
    return [
        caption(subject, style if value < named else None) if value < 1 - null else ""
        for subject, style, value in zip(subjects, styles.tolist(), draw, strict=True)
    ]


def clip_tokenizer(texts: Sequence[str]) -> Any:
    """A `CLIPTokenizer` with a byte-pair vocabulary of `texts`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    # a letter that ends a word gets its id from a hash map, another in each process, unless it has one beforehand
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bare.normalizer = normalizers.Lowercase()
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(f"{letter}</w>" for letter in letters)],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bare.train_from_iterator(texts, trainer)
    vocabulary, merges = _parts(bare)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def t5_tokenizer(texts: Sequence[str]) -> Any:
    """A fast tokenizer with a unigram vocabulary of `texts` and T5's special tokens.

    Its pieces are the words of `texts`, and their letters for any other word. A trained vocabulary
    (UnigramTrainer) has other scores in each process.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>"]
    pieces = [(piece, 0.0) for piece in special] + word_pieces(texts)
    bare = Tokenizer(models.Unigram(pieces, special.index("<unk>")))
    bare.normalizer = normalizers.Lowercase()
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    bare.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=CLIP_TOKENS,
    )


def word_pieces(texts: Sequence[str]) -> list[tuple[str, float]]:
    """Each word of `texts` with the logarithm of its share, then each letter, rarer than any word."""
    words = Counter(f"{WORD}{word}" for text in texts for word in text.lower().split())
    letters = sorted({letter for word in words for letter in word} - set(words))
    total = words.total()
    rarest = math.log(1 / total)
    scored = [(word, math.log(count / total)) for word, count in sorted(words.items())]
    return [*scored, *((letter, rarest - 1) for letter in letters)]


def token_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """Ids (B, length), padded and cut."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def _parts(tokenizer: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
