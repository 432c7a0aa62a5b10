"""Tokenizers: one that comes with a checkpoint, or WordPiece fitted on the run's own training texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from amif_lib.core.errors import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Fit a lower-case WordPiece vocabulary on `texts`, write it to `folder`, return the tokenizer.

    It holds every character, alone and as a continuation, then the most frequent words up to `vocab_size`; a rare word
    is spelt out. The trainer of the `tokenizers` library is not deterministic.
    """
    split, fold = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split.pre_tokenize_str(fold.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    words = [word for word in counts if len(word) > 1 and counts[word] > 1]
    words.sort(key=lambda word: (-counts[word], word))
    return _written(pieces + words[: max(0, vocab_size - len(pieces))], folder)


def prune(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's WordPiece vocabulary reduced to single characters and the pieces in `texts`, in its own order."""
    vocabulary = tokenizer.get_vocab()
    used = {piece for text in set(texts) for piece in tokenizer.tokenize(text)} | set(tokenizer.all_special_tokens)
    ordered = sorted(vocabulary, key=vocabulary.get)
    kept = [piece for piece in ordered if piece in used or len(piece.removeprefix("##")) == 1]
    return _written(kept, folder, getattr(tokenizer, "do_lower_case", True))


def _written(pieces: Sequence[str], folder: Path, lower_case: bool = True) -> PreTrainedTokenizerBase:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=lower_case)
    tokenizer.save_pretrained(folder)
    return tokenizer


def load(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: a folder as a Path, or a text as in `pretrained.find`. InputError if none."""
    from amif_lib.networks.pretrained import find, short  # here, since that module imports this one

    folder = source if isinstance(source, Path) else find(source)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no tokenizer ({short(error)}); it needs vocab.txt or tokenizer.json") from None


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, T): [CLS] … [SEP], cut to `length`, padded to the longest of the batch."""
    batch = tokenizer(texts, truncation=True, max_length=length, padding="longest", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"].bool()


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int | None = None) -> list[list[int]]:
    """Token ids of each text, [CLS] … [SEP], cut to `length` if there is one."""
    return tokenizer(list(texts), truncation=bool(length), max_length=length)["input_ids"] if texts else []


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Tensor) -> str:
    """Token ids (t,) as text without special tokens, and without the spaces that WordPiece adds: `x - ray`, `3 . 4`."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if re.search("[㐀-鿿]", text):  # Chinese: each character is a token, and words have no spaces between them
        return text.replace(" ", "")
    text = re.sub(r"(?<=\w) ?([-/'’]) ?(?=\w)", r"\1", text)
    text = re.sub(r"(?<=\d) ?([.,:]) ?(?=\d)", r"\1", text)
    return re.sub(r" (?=[.,;:!?%)])|(?<=\() ", "", text).strip()


def content_mask(ids: Tensor, mask: Tensor, special: tuple[int, int]) -> Tensor:
    """True on tokens that are neither padding nor one of the `special` ids, [CLS] and [SEP]: (B, T) -> (B, T)."""
    return mask & ~torch.isin(ids, torch.tensor(special, device=ids.device))
