"""Exact answer ranking: the log-likelihood of every candidate answer under an autoregressive decoder.

The paper takes "the one with the lowest language modeling loss" among the candidate answers (supplement section 6).
Here that loss is the plain sequence negative log-likelihood in fp32: every token once, the end token once, no label
smoothing and no first-token filter. (ALBEF counts the first token twice and ranks only the 128 candidates whose first
token is likeliest; BLIP smooths labels while it ranks.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amif_lib.errors import InputError


@torch.no_grad()
def rank_answers(
    decoder: Callable[..., Any],
    memory: Tensor,
    memory_mask: Tensor,
    candidates: Sequence[Sequence[int]],
    *,
    chunk: int = 256,
) -> Tensor:
    """Log-likelihood of each candidate answer for each question.

    Parameters
    ----------
    decoder
        Called as `decoder(input_ids=, attention_mask=, encoder_hidden_states=, encoder_attention_mask=)`; the
        returned object's `logits` (N, T, vocabulary) predict at position t the token at t + 1. Causal, in eval mode.
    memory : (B, S, d)
        What the decoder cross-attends to, one row per question.
    memory_mask : (B, S)
        1 or True where the memory is real. Masked positions never change a result.
    candidates
        K token-id sequences as a BERT tokenizer makes them, `[CLS] ... [SEP]`. The first token starts the decoder and
        is not scored; the last is the end token and is scored once. Equal sequences are scored once and share a value.
    chunk
        Most (question, candidate) pairs in one forward pass (one candidate for all B at least); bounds the memory
        taken, never changes a result.

    Returns
    -------
    (B, K) float32, natural logarithm: `sum_t log p(token_t | tokens before t, memory)`.

    Raises
    ------
    InputError
        Where there is no candidate, a candidate has nothing to score, shapes disagree, or the decoder is training.
    """
    batch = memory.shape[0]
    if memory_mask.shape != memory.shape[:2]:
        raise InputError(
            f"memory_mask has shape {tuple(memory_mask.shape)}, memory {tuple(memory.shape)}: give (B, S) and (B, S, d)"
        )
    if getattr(decoder, "training", False):
        raise InputError("the decoder is in training mode, dropout would change the scores: call decoder.eval() first")
    sequences = [tuple(int(token) for token in candidate) for candidate in candidates]
    if not sequences:
        raise InputError("candidates: the list is empty; give at least one answer")
    for position, sequence in enumerate(sequences):
        if len(sequence) < 2:
            raise InputError(
                f"candidates[{position}] has {len(sequence)} token(s): give a start token, the answer and an end token"
            )

    distinct = sorted(set(sequences), key=lambda s: (len(s), s))  # neighbours in length: little padding
    scores = torch.empty(batch, len(distinct), dtype=torch.float32, device=memory.device)  # (B, U)
    per_pass = max(1, chunk // batch)
    for start in range(0, len(distinct), per_pass):
        part = distinct[start : start + per_pass]
        scores[:, start : start + len(part)] = _score(decoder, memory, memory_mask, part)
    column = {sequence: index for index, sequence in enumerate(distinct)}
    order = torch.tensor([column[sequence] for sequence in sequences], device=memory.device)
    return scores[:, order]  # (B, K)


def _score(decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, part: list[tuple[int, ...]]) -> Tensor:
    """All of `part` for all questions in one forward pass -> (B, C)."""
    batch, count, longest = memory.shape[0], len(part), max(map(len, part))
    ids = torch.zeros(count, longest, dtype=torch.long)
    mask = torch.zeros(count, longest, dtype=torch.long)
    for row, sequence in enumerate(part):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    ids = ids.to(memory.device).repeat(batch, 1)  # (B*C, T): all candidates of question 1, then of question 2
    mask = mask.to(memory.device).repeat(batch, 1)  # (B*C, T)
    if not getattr(decoder, "repeats_memory", False):  # ours projects keys and values once and repeats those
        memory = memory.repeat_interleave(count, dim=0)  # (B*C, S, d)
        memory_mask = memory_mask.repeat_interleave(count, dim=0)  # (B*C, S)
    logits = decoder(
        input_ids=ids[:, :-1],  # the last token is only predicted, never read
        attention_mask=mask[:, :-1],
        encoder_hidden_states=memory,
        encoder_attention_mask=memory_mask.to(torch.long),
    ).logits.float()  # (B*C, T-1, vocabulary)
    target = ids[:, 1:]  # (B*C, T-1)
    chosen = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)  # (B*C, T-1)
    return (chosen * mask[:, 1:]).sum(-1).view(batch, count)  # (B, C)
