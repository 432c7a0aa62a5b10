"""Exact answer ranking: the log-likelihood of every candidate answer under an autoregressive decoder.

All candidates of a question are one packed sequence, the nodes of their prefix trie: each prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks.decoder import AnswerDecoder

Tokens = tuple[int, ...]  # of a candidate: [CLS] ... [SEP]
MOST_NODES = 256  # of a trie in one packed sequence; a larger trie is cut along its subtrees


def at_once(device: torch.device) -> tuple[int, int]:
    """Tokens in one pass and logits in memory: enough to fill a GPU; on a CPU few enough to stay in its cache."""
    return (4096, 2**25) if device.type == "cuda" else (1024, 2**20)


@torch.no_grad()
def rank_answers(
    decoder: AnswerDecoder | Callable[..., Any],
    memory: Tensor,
    memory_mask: Tensor,
    candidates: Sequence[Sequence[int]],
    *,
    chunk: int | None = None,
) -> Tensor:
    """Log-likelihood of each candidate answer for each question (supplement section 6).

    The paper takes "the one with the lowest language modeling loss": the negative log-likelihood of the whole sequence,
    every token and [SEP] once (point 40).

    Parameters
    ----------
    decoder
        An `AnswerDecoder` in evaluation mode. Any other causal decoder that is called like a Hugging Face one with
        cross-attention scores candidate after candidate: equal results, slower.
    memory, memory_mask : (B, S, d), (B, S)
        What the decoder cross-attends to, one row per question; True or 1 where it is real.
    candidates
        K sequences `[CLS] ... [SEP]` of token ids. [CLS] starts the decoder and is not scored; [SEP] is.
    chunk
        Most tokens in one forward pass: bounds the memory taken, changes a result by no more than rounding.

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
    memory = memory.masked_fill(~memory_mask[..., None], 0)  # NaN behind the mask times 0 would stay NaN
    ordered = sorted(set(sequences))  # U distinct candidates; neighbours share prefixes
    if isinstance(decoder, AnswerDecoder):
        scores = _rank_trie(decoder, memory, memory_mask, ordered, chunk or at_once(memory.device)[0])  # (B, U)
    else:
        scores = torch.stack([_rank_one(decoder, memory, memory_mask, tokens) for tokens in ordered], dim=1)  # (B, U)
    if len(wrong := (~scores.isfinite().all(1)).nonzero()):
        raise InputError(f"memory[{int(wrong[0])}] gives log-likelihoods that are not finite; look for NaN in it")
    column = {sequence: index for index, sequence in enumerate(ordered)}
    return scores[:, [column[sequence] for sequence in sequences]]  # (B, U) -> (B, K)


def _rank_trie(
    decoder: AnswerDecoder, memory: Tensor, memory_mask: Tensor, ordered: list[Tokens], chunk: int
) -> Tensor:
    """`rank_answers` of sorted candidates -> (B, U). A node, at the position that is its depth, sees its ancestors."""
    tries = [pack_trie(part, memory.device) for part in cut(ordered, min(MOST_NODES, chunk))]
    # Layers below the first cross-attention know nothing of the question: they run once for all questions.
    blind, nothing, begun = decoder.blind_layers, [None] * len(decoder.layers), []
    for trie in tries:
        x = decoder.embed(trie.tokens[None], trie.depths)  # (1, N, d)
        begun.append(decoder.run(x, trie.sees[None, None], nothing, None, stop=blind))  # (1, N, d)
    questions, rows = max(1, chunk // max(len(trie.tokens) for trie in tries)), []  # how many in one pass
    for few, few_mask in zip(memory.split(questions), memory_mask.split(questions), strict=True):
        remembered, scores = decoder.remember(few), []  # keys and values of the memory, once per question
        for trie, x in zip(tries, begun, strict=True):
            x = x.expand(len(few), -1, -1)  # (1, N, d) -> (b, N, d)
            x = decoder.run(x, trie.sees[None, None], remembered, few_mask, start=blind)  # (b, N, d)
            scores.append(_sum_edges(decoder, x, trie))  # (b, u)
        rows.append(torch.cat(scores, dim=1))  # (b, U)
    return torch.cat(rows)  # (B, U)


class Trie(NamedTuple):
    """Part of a prefix trie as a sequence of N nodes, depth first. An edge leads from a node to a next token."""

    tokens: Tensor  # (N,)
    depths: Tensor  # (N,) tokens before the node's own
    sees: Tensor  # (N, N) True where the column is the row or one of its ancestors
    edge_nodes: Tensor  # (E,)
    edge_tokens: Tensor  # (E,)
    paths: Tensor  # (U, longest) edges of each candidate, filled up with E


def cut(ordered: Sequence[Tokens], most: int) -> Iterable[list[Tokens]]:
    """Sorted candidates in runs whose tries have at most `most` nodes (one candidate at least)."""
    run: list[Tokens] = []
    nodes = 0
    for sequence in ordered:
        new = len(sequence) - 1  # the last token is never read
        pairs = zip(run[-1][:-1], sequence[:-1], strict=False) if run else ()
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if run and nodes + new - shared > most:
            yield run
            run, nodes, shared = [], 0, 0
        run.append(sequence)
        nodes += new - shared
    yield run


def pack_trie(sequences: Sequence[Tokens], device: torch.device | str = "cpu") -> Trie:
    """The trie of these candidates; its nodes are their distinct prefixes, the whole candidates left out."""
    nodes: dict[Tokens, int] = {}  # prefix -> node
    edges: dict[tuple[int, int], int] = {}  # (node, next token) -> edge
    ancestors, paths = [], []
    for sequence in sequences:
        above, path = [], []
        for length in range(1, len(sequence)):
            node = nodes.setdefault(sequence[:length], len(nodes))
            above.append(node)
            if node == len(ancestors):
                ancestors.append(list(above))
            path.append(edges.setdefault((node, sequence[length]), len(edges)))
        paths.append(torch.tensor(path))
    sees = np.zeros((len(nodes), len(nodes)), dtype=bool)
    for node, above in enumerate(ancestors):
        sees[node, above] = True
    ends = torch.tensor(list(edges), device=device)  # (E, 2)
    return Trie(
        tokens=torch.tensor([prefix[-1] for prefix in nodes], device=device),
        depths=torch.tensor([len(prefix) - 1 for prefix in nodes], device=device),
        sees=torch.from_numpy(sees).to(device),
        edge_nodes=ends[:, 0],
        edge_tokens=ends[:, 1],
        paths=nn.utils.rnn.pad_sequence(paths, batch_first=True, padding_value=len(edges)).to(device),
    )


def _sum_edges(decoder: AnswerDecoder, states: Tensor, trie: Trie) -> Tensor:
    """States (b, N, d) -> log-likelihood of each candidate (b, U); the output layer sees a few nodes at a time."""
    batch, nodes = states.shape[:2]
    edges = states.new_zeros(batch, len(trie.edge_nodes) + 1, dtype=torch.float32)  # the last one fills up short paths
    step = max(1, at_once(states.device)[1] // (batch * decoder.head_bias.shape[0]))
    for start in range(0, nodes, step):
        logits = decoder.project(states[:, start : start + step]).float()  # (b, n, vocabulary)
        own = (trie.edge_nodes // step == start // step).nonzero().squeeze(1)  # edges that begin at one of these nodes
        node = trie.edge_nodes[own] - start
        edges[:, own] = logits[:, node, trie.edge_tokens[own]] - logits.logsumexp(-1)[:, node]
    return edges[:, trie.paths].sum(-1)  # (b, U, longest) -> (b, U)


def _rank_one(decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, tokens: Tokens) -> Tensor:
    """Log-likelihood of one candidate for each question (B,), by any causal decoder."""
    ids = torch.tensor(tokens, device=memory.device).expand(len(memory), -1)  # (B, L)
    out = decoder(input_ids=ids[:, :-1], encoder_hidden_states=memory, encoder_attention_mask=memory_mask.long())
    return out.logits.float().log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))  # (B, L-1, vocabulary) -> (B,)


def _check(decoder: Any, memory_mask: Tensor, candidates: list[Tokens]) -> None:
    """Raise InputError for what `rank_answers` refuses."""
    if getattr(decoder, "training", False):
        raise InputError("the decoder is in training mode, dropout would change the scores: call decoder.eval() first")
    if len(empty := (~memory_mask.any(1)).nonzero()):
        raise InputError(f"memory_mask[{int(empty[0])}] masks the whole memory; leave at least one position")
    if not candidates:
        raise InputError("candidates: the list is empty; give at least one answer")
    ours = isinstance(decoder, AnswerDecoder)  # of another decoder, sizes are unknown
    vocabulary = len(decoder.head_bias) if ours else 2**31
    longest = decoder.position_embeddings.num_embeddings + 1 if ours else 2**31
    for number, tokens in enumerate(candidates):
        if not (2 <= len(tokens) <= longest and min(tokens) >= 0 and max(tokens) < vocabulary):
            wanted = f"[CLS], an answer and [SEP], {longest} tokens at most, with ids below {vocabulary}"
            raise InputError(f"candidates[{number}] is {list(tokens)}; give {wanted}")
