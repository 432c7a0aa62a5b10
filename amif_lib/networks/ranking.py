"""Exact answer ranking: the log-likelihood of every candidate answer under an autoregressive decoder.

Candidates share prefixes: for `left lung` and `left kidney`, `[CLS] left` is computed once (see `Trie`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks.decoder import AnswerDecoder

Tokens = tuple[int, ...]  # of a candidate: [CLS] ... [SEP]
MOST_NODES = 256  # in one packed sequence; more candidates are divided among several tries


def at_once(device: torch.device) -> tuple[int, int]:
    """How many tokens a pass has and how many logits are in memory: many for a GPU, few for a CPU's cache."""
    return (4096, 2**25) if device.type == "cuda" else (1024, 2**20)


@torch.no_grad()
def rank_answers(
    decoder: AnswerDecoder | Callable[..., Any],
    memory: Tensor,
    memory_mask: Tensor,
    candidates: Sequence[Sequence[int]],
) -> Tensor:
    """Log-likelihood of each candidate answer for each question (supplement section 6).

    The paper takes "the one with the lowest language modeling loss": the negative log-likelihood of the whole sequence,
    every token and [SEP] once (point 40).

    Parameters
    ----------
    decoder
        An `AnswerDecoder` in evaluation mode. Any other causal decoder that is called like a Hugging Face one with
        cross-attention scores one candidate after the other: slower, with equal results.
    memory, memory_mask : (B, S, d), (B, S)
        What the decoder cross-attends to, one row per question; the mask is True (or 1) at real positions.
    candidates
        K sequences `[CLS] ... [SEP]` of token ids. [CLS] starts the decoder and is not scored; [SEP] is.

    Returns
    -------
    (B, K) float32, natural logarithm: `sum_t log p(token_t | tokens before t, memory)`.

    Raises
    ------
    InputError
        No candidate; one that is empty, too long or outside the vocabulary; a question whose memory is masked or not
        finite; a decoder in training mode.
    """
    memory_mask, sequences = memory_mask.bool(), [tuple(map(int, candidate)) for candidate in candidates]
    _check(decoder, memory_mask, sequences)
    memory = memory.masked_fill(~memory_mask[..., None], 0)  # (B, S, d); else NaN at padding, times weight 0, stays NaN
    ordered = sorted(set(sequences))  # U distinct candidates; neighbours share prefixes
    if isinstance(decoder, AnswerDecoder):
        scores = _rank_trie(decoder, memory, memory_mask, ordered)  # (B, U)
    else:
        scores = torch.stack([_rank_one(decoder, memory, memory_mask, tokens) for tokens in ordered], dim=1)  # (B, U)
    if len(wrong := (~scores.isfinite().all(1)).nonzero()):
        raise InputError(f"memory[{int(wrong[0])}] gives log-likelihoods that are not finite; look for NaN in it")
    column = {sequence: index for index, sequence in enumerate(ordered)}
    return scores[:, [column[sequence] for sequence in sequences]]  # (B, U) -> (B, K)


def _rank_trie(decoder: AnswerDecoder, memory: Tensor, memory_mask: Tensor, ordered: list[Tokens]) -> Tensor:
    """`rank_answers` of sorted candidates -> (B, U). A node's depth is its position."""
    tries = [pack_trie(part, memory.device) for part in cut(ordered, MOST_NODES)]
    # Layers below the first cross-attention do not read the question, so they run once for all questions.
    blind, nothing, begun = decoder.blind_layers, [None] * len(decoder.layers), []
    for trie in tries:
        x = decoder.embed(trie.tokens[None], trie.depths)  # (1, N, d)
        begun.append(decoder.run(x, trie.sees[None, None], nothing, None, stop=blind))  # (1, N, d)
    questions = max(1, at_once(memory.device)[0] // max(len(trie.tokens) for trie in tries))  # in one pass
    rows = []
    for few, few_mask in zip(memory.split(questions), memory_mask.split(questions), strict=True):
        remembered, scores = decoder.remember(few), []  # keys and values of the memory, once per question
        for trie, x in zip(tries, begun, strict=True):
            x = x.expand(len(few), -1, -1)  # (1, N, d) -> (b, N, d)
            x = decoder.run(x, trie.sees[None, None], remembered, few_mask, start=blind)  # (b, N, d)
            scores.append(_sum_edges(decoder, x, trie))  # (b, u)
        rows.append(torch.cat(scores, dim=1))  # (b, U)
    return torch.cat(rows)  # (B, U)


class Trie(NamedTuple):
    """Part of a prefix trie: its N nodes, distinct prefixes, as one sequence, and E edges from a node to a next token.

    A node attends to itself and its ancestors only. An edge's value is the log-probability of its token, and a
    candidate's log-likelihood the sum of the edges on its path.
    """

    tokens: Tensor  # (N,)
    depths: Tensor  # (N,) number of tokens before the node's own
    sees: Tensor  # (N, N) True where the column is the row or one of its ancestors
    edge_nodes: Tensor  # (E,)
    edge_tokens: Tensor  # (E,)
    paths: Tensor  # (U, longest) edges of each candidate, padded with E


def cut(ordered: Sequence[Tokens], most: int) -> Iterable[list[Tokens]]:
    """Divide sorted candidates into runs whose tries have at most `most` nodes; a run has at least one candidate."""
    run: list[Tokens] = []
    nodes: set[Tokens] = set()
    for sequence in ordered:
        own = {sequence[:length] for length in range(1, len(sequence))}
        if run and len(nodes | own) > most:
            yield run
            run, nodes = [], set()
        run.append(sequence)
        nodes |= own
    yield run


def pack_trie(sequences: Sequence[Tokens], device: torch.device | str = "cpu") -> Trie:
    """The trie of these candidates. Its nodes are their distinct prefixes, without the whole candidates."""
    prefixes = dict.fromkeys(sequence[:length] for sequence in sequences for length in range(1, len(sequence)))
    node = {prefix: number for number, prefix in enumerate(prefixes)}
    steps = [[(node[each[:length]], each[length]) for length in range(1, len(each))] for each in sequences]
    edge = {step: number for number, step in enumerate(dict.fromkeys(chain(*steps)))}
    sees = np.zeros((len(node), len(node)), dtype=bool)
    for prefix, row in node.items():
        sees[row, [node[prefix[:length]] for length in range(1, len(prefix) + 1)]] = True
    paths = [torch.tensor([edge[step] for step in own]) for own in steps]
    ends = torch.tensor(list(edge), device=device)  # (E, 2)
    return Trie(
        tokens=torch.tensor([prefix[-1] for prefix in node], device=device),
        depths=torch.tensor([len(prefix) - 1 for prefix in node], device=device),
        sees=torch.from_numpy(sees).to(device),
        edge_nodes=ends[:, 0],
        edge_tokens=ends[:, 1],
        paths=nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=len(edge)).to(device),
    )


def _sum_edges(decoder: AnswerDecoder, states: Tensor, trie: Trie) -> Tensor:
    """States (b, N, d) -> log-likelihood of each candidate (b, u), from the logits of a few nodes at a time."""
    batch, nodes = states.shape[:2]
    edges = states.new_zeros(batch, len(trie.edge_nodes) + 1, dtype=torch.float32)  # the last one, 0, pads paths
    step = max(1, at_once(states.device)[1] // (batch * decoder.head_bias.shape[0]))
    for start in range(0, nodes, step):
        logits = decoder.project(states[:, start : start + step]).float()  # (b, n, vocabulary)
        own = (trie.edge_nodes // step == start // step).nonzero().squeeze(1)  # edges that begin at one of these nodes
        node = trie.edge_nodes[own] - start
        edges[:, own] = logits[:, node, trie.edge_tokens[own]] - logits.logsumexp(-1)[:, node]
    return edges[:, trie.paths].sum(-1)  # (b, u, longest) -> (b, u)


def _rank_one(decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, tokens: Tokens) -> Tensor:
    """Log-likelihood of one candidate for each question (B,), by any causal decoder."""
    ids = torch.tensor(tokens, device=memory.device).expand(len(memory), -1)  # (B, L)
    out = decoder(input_ids=ids[:, :-1], encoder_hidden_states=memory, encoder_attention_mask=memory_mask.long())
    return out.logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))  # (B, L-1, vocabulary) -> (B,)


def _check(decoder: Any, memory_mask: Tensor, candidates: list[Tokens]) -> None:
    """Raise InputError for arguments that `rank_answers` cannot use."""
    if getattr(decoder, "training", False):
        raise InputError("the decoder is in training mode, dropout would change the scores: call decoder.eval() first")
    if len(empty := (~memory_mask.any(1)).nonzero()):
        raise InputError(f"memory_mask[{int(empty[0])}] masks the whole memory; leave at least one position")
    if not candidates:
        raise InputError("candidates: the list is empty; give at least one answer")
    ours = isinstance(decoder, AnswerDecoder)  # the sizes of another decoder are unknown
    vocabulary = len(decoder.head_bias) if ours else 2**31
    longest = decoder.position_embeddings.num_embeddings + 1 if ours else 2**31
    for number, tokens in enumerate(candidates):
        if not (2 <= len(tokens) <= longest and min(tokens) >= 0 and max(tokens) < vocabulary):
            wanted = f"[CLS], an answer and [SEP], {longest} tokens at most, with ids below {vocabulary}"
            raise InputError(f"candidates[{number}] is {list(tokens)}; give {wanted}")
