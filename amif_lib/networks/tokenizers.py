"""Tokenizers: one that comes with a checkpoint, or WordPiece fitted on the run's own training texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from amif_lib.core.errors import InputError
from amif_lib.networks import hub

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Fit a lower-case WordPiece vocabulary on `texts`, write it to `folder`, return the tokenizer.

    Every character, alone and as a continuation, then the most frequent words (ties by name) until `vocab_size`. A rare word
    is spelt out. Merge-based training is not used: the `tokenizers` library's gives another vocabulary at every call.
    """
    split, fold = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split.pre_tokenize_str(fold.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    words = sorted(
        (word for word in counts if len(word) > 1 and counts[word] > 1), key=lambda word: (-counts[word], word)
    )
    pieces += words[: max(0, vocab_size - len(pieces))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def prune(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], folder: Path) -> PreTrainedTokenizerBase:
    """A checkpoint's WordPiece vocabulary cut to single characters and the pieces that `texts` use, in its own order."""
    vocabulary = tokenizer.get_vocab()
    used = {piece for text in set(texts) for piece in tokenizer.tokenize(text)} | set(tokenizer.all_special_tokens)
    kept = [
        piece for piece in sorted(vocabulary, key=vocabulary.get) if piece in used or len(piece.removeprefix("##")) == 1
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in kept), encoding="utf-8")
    pruned = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=getattr(tokenizer, "do_lower_case", True))
    pruned.save_pretrained(folder)
    return pruned


def fit_rows(state: dict[str, Tensor], source: str, tokenizer: PreTrainedTokenizerBase, like: Tensor) -> list[str]:
    """Reorder a checkpoint's word embeddings (and output bias) in place to the pieces of `tokenizer`; rows of `like` (V, d) fill up.

    Returns what was changed, for the load report; nothing where the vocabularies agree.
    """
    names = [name for name in state if name.endswith(("word_embeddings.weight", "cls.predictions.bias", "head_bias"))]
    if not names or state[names[0]].shape[0] == len(tokenizer):
        return []
    theirs, ours = load(source).get_vocab(), tokenizer.get_vocab()
    rows = [theirs[piece] for piece in sorted(ours, key=ours.get)]
    for name in names:
        table = like.detach().clone() if state[name].ndim == 2 else torch.zeros(len(like))
        table[: len(rows)] = state[name][rows]
        state[name] = table
    return [f"vocabulary {len(theirs)} -> {len(rows)} pieces"]


def load(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: a folder or a hub id."""
    folder = hub.find(str(source))
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: no tokenizer ({' '.join(str(error).split())[:120]}); it needs vocab.txt or tokenizer.json"
        ) from None


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, T): [CLS] … [SEP], cut to `length`, padded to the longest of the batch."""
    batch = tokenizer(texts, truncation=True, max_length=length, padding="longest", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"].bool()


def content_mask(ids: Tensor, mask: Tensor, tokenizer_ids: tuple[int, int]) -> Tensor:
    """True on tokens that are neither padding nor [CLS] nor [SEP], (B, T); `tokenizer_ids` are those two ids."""
    special = torch.zeros_like(mask)
    for token in tokenizer_ids:
        special |= ids == token
    return mask & ~special


def in_halves(text: str) -> tuple[str, str]:
    """A report cut in two at the end of the sentence nearest to its middle, or at a word where it is one sentence.

    A text of one word is both halves.
    """
    words = text.split()
    if len(words) < 2:
        return text, text
    ends = [i for i, word in enumerate(words[:-1], start=1) if word.endswith(".")] or [len(words) // 2]
    cut = min(ends, key=lambda end: abs(2 * end - len(words)))
    return " ".join(words[:cut]), " ".join(words[cut:])


def shuffle_sentences(tokens: np.ndarray, full_stops: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tokens (t,) with their sentences in another order, given where full stops are; [CLS] and [SEP] stay."""
    sentences = np.split(tokens[1:-1], full_stops)  # a stop at place k of the tokens ends the first k inner ones
    return np.concatenate([tokens[:1], *(sentences[i] for i in rng.permutation(len(sentences))), tokens[-1:]])
