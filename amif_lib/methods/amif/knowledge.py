"""Prior knowledge of the gated cross-attention module (section 3.4.1): a set's answer vocabulary as tokens, and embedded.

Shapes: M knowledge tokens, A answers, d = width. A token belongs to one answer; an answer's tokens stand together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amif_lib.methods.amif.settings import KnowledgeSpec
from amif_lib.networks.encoders import TextEncoder


def token_limit(spec: KnowledgeSpec, text_positions: int) -> int:
    """Most knowledge tokens: `max_tokens`, and no more than the position table has where positions run through all."""
    return spec.max_tokens if spec.positions == "per_answer" else min(spec.max_tokens, text_positions)


def select(texts: Sequence[str], tokenizer: Any, max_tokens: int, words: bool = False) -> tuple[Tensor, Tensor, int]:
    """The answer vocabulary as tokens: unique texts by frequency (ties by name), joined with [SEP], until `max_tokens`.

    With `words` each different token enters once, without [SEP], as an answer of its own.
    Returns token ids (M,), the index of each token's text (M,), and how many texts did not fit.
    """
    counts: dict[str, int] = {}
    for text in texts:
        counts[text] = counts.get(text, 0) + 1
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    ids: list[int] = []
    owner: list[int] = []
    kept, seen = 0, set()
    for text in ordered:
        pieces = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [i for i in dict.fromkeys(pieces) if i not in seen] if words else [*pieces, tokenizer.sep_token_id]
        if len(ids) + len(pieces) > max_tokens:
            break
        owner += range(len(ids), len(ids) + len(pieces)) if words else [kept] * len(pieces)
        ids += pieces
        seen.update(pieces)
        kept += 1
    return torch.tensor(ids, dtype=torch.long), torch.tensor(owner, dtype=torch.long), len(ordered) - kept


def positions(owner: Tensor, spec: KnowledgeSpec) -> Tensor:
    """Position of each knowledge token (M,): in the sequence, or within its answer."""
    place = torch.arange(len(owner), device=owner.device)  # (M,)
    return place - torch.searchsorted(owner, owner) if spec.positions == "per_answer" else place


def embed(encoder: TextEncoder, ids: Tensor, owner: Tensor, spec: KnowledgeSpec) -> Tensor:
    """Word and position embeddings of the knowledge tokens: ids and owner (M,) -> (1, M, d), with gradients."""
    return encoder.embed(ids[None], positions(owner, spec)[None])


@torch.no_grad()
def encode_frozen(encoder: TextEncoder, ids: Tensor, owner: Tensor, spec: KnowledgeSpec) -> Tensor:
    """What the whole text encoder makes of the knowledge as it is now, without dropout: ids and owner (M,) -> (M, d).

    The sequence is read in one piece, or answer by answer where positions are per answer.
    """
    training = encoder.training
    encoder.eval()
    rows = owner if spec.positions == "per_answer" else torch.zeros_like(owner)
    place = positions(owner, spec)  # (M,)
    shape = (int(rows.max()) + 1, int(place.max()) + 1) if len(ids) else (0, 0)
    padded, mask = ids.new_zeros(shape), torch.zeros(shape, dtype=torch.bool, device=ids.device)
    padded[rows, place], mask[rows, place] = ids, True  # (A, longest)
    parts = [encoder(i, m) for i, m in zip(padded.split(64), mask.split(64), strict=True)] if len(ids) else []
    encoder.train(training)
    width = encoder.bert.config.hidden_size
    return torch.cat(parts)[rows, place] if parts else torch.zeros(0, width)  # (A, longest, d) -> (M, d)


def pool(embedded: Tensor, owner: Tensor) -> Tensor:
    """One mean vector per answer: (1, M, d) -> (1, A, d)."""
    which = F.one_hot(owner).to(embedded.dtype)  # (M, A)
    return (which / which.sum(0)).T @ embedded
