"""Tokenizers: one that comes with a checkpoint, or WordPiece fitted on the run's own training texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from amif_lib import hub
from amif_lib.errors import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train(texts: Iterable[str], vocab_size: int, folder: Path) -> PreTrainedTokenizerBase:
    """Fit lower-case WordPiece (Wu et al., 2016) on `texts`, write it to `folder`, return it. Deterministic."""
    from tokenizers import BertWordPieceTokenizer

    model = BertWordPieceTokenizer(lowercase=True)
    model.train_from_iterator(sorted(set(texts)), vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = sorted(model.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def load(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: a folder or a hub id."""
    folder = hub.find(str(source))
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no tokenizer ({' '.join(str(error).split())[:120]}); it needs vocab.txt or tokenizer.json") from None


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
