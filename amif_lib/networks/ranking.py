"""Exact answer ranking: the log-likelihood of every candidate answer under an autoregressive decoder.

All candidates of a question are one packed sequence, the nodes of their prefix trie: each prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    every token and [SEP] once, without label smoothing or a first-token filter (which ALBEF has).

    Parameters
    ----------
    decoder
        An `AnswerDecoder` in evaluation mode. Any other causal decoder that is called like a Hugging Face one with
        cross-attention is scored without the trie (`rank_in_buckets`): equal results, slower.
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
    sequences = _checked(decoder, memory, memory_mask, candidates)
    memory_mask = memory_mask.bool()
    ordered = sorted(set(sequences))  # U distinct candidates; neighbours share prefixes
    chunk = chunk or at_once(memory.device)[0]
    rank = rank_trie if isinstance(decoder, AnswerDecoder) else rank_in_buckets
    scores = rank(decoder, memory, memory_mask, ordered, chunk)  # (B, U)
    if len(wrong := (~scores.isfinite().all(1)).nonzero()):
        raise InputError(f"memory[{int(wrong[0])}] gives log-likelihoods that are not finite; look for NaN in it")
    column = {sequence: index for index, sequence in enumerate(ordered)}
    return scores[:, [column[sequence] for sequence in sequences]]  # (B, U) -> (B, K)


def rank_trie(decoder: AnswerDecoder, memory: Tensor, memory_mask: Tensor, ordered: list[Tokens], chunk: int) -> Tensor:
    """`rank_answers` of sorted candidates -> (B, U). A node, at the position that is its depth, sees its ancestors."""
    packs = [pack_trie(part).to(memory.device) for part in cut(ordered, min(MOST_NODES, chunk))]
    # Layers below the first cross-attention know nothing of the question: they run once for all questions.
    blind, nothing = decoder.blind_layers, [None] * len(decoder.layers)
    begun = [
        decoder.run(decoder.embed(part.tokens[None], part.depths), part.sees[None, None], nothing, None, stop=blind)
        for part in packs
    ]  # each (1, N, d)
    memory = memory.masked_fill(~memory_mask[..., None], 0)  # NaN behind the mask times 0 would stay NaN
    questions = max(1, chunk // max(len(part.tokens) for part in packs))  # in one pass
    rows = []
    for few, few_mask in zip(memory.split(questions), memory_mask.split(questions), strict=True):
        remembered = decoder.remember(few)  # keys and values of the memory, once per question
        scores = []
        for part, x in zip(packs, begun, strict=True):
            x = x.expand(len(few), -1, -1)  # (1, N, d) -> (b, N, d)
            x = decoder.run(x, part.sees[None, None], remembered, few_mask, start=blind)
            scores.append(_sum_edges(decoder, x, part))
        rows.append(torch.cat(scores, dim=1))  # (b, U)
    return torch.cat(rows)


@dataclass
class Pack:
    """Part of a prefix trie as a sequence of N nodes, depth first. An edge leads from a node to a next token."""

    tokens: Tensor  # (N,)
    depths: Tensor  # (N,) tokens before the node's own
    sees: Tensor  # (N, N) True where the column is the row or one of its ancestors
    edge_nodes: Tensor  # (E,) ascending
    edge_tokens: Tensor  # (E,)
    first_edges: list[int]  # (N + 1,) where each node's edges begin
    paths: Tensor  # (U, longest) edges of each candidate, filled up with E

    def to(self, device: torch.device) -> Pack:
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Pack(**moved, first_edges=self.first_edges)


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


def pack_trie(sequences: Sequence[Tokens]) -> Pack:
    """The trie of these candidates; its nodes are their distinct prefixes, the whole candidates left out."""
    children: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    edges: dict[tuple[int, int], int] = {}  # (node, next token) -> edge
    tokens, parents, depths, walks = [], [], [], []
    for sequence in sequences:
        node, walk = -1, []
        for depth, token in enumerate(sequence[:-1]):
            child = children.setdefault((node, token), len(tokens))
            if child == len(tokens):
                tokens.append(token)
                parents.append(node)
                depths.append(depth)
            node = child
            walk.append(edges.setdefault((node, sequence[depth + 1]), len(edges)))
        walks.append(walk)
    sees = np.eye(len(tokens), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    ends = np.array(list(edges))  # (E, 2), in the order of discovery
    order = ends[:, 0].argsort(kind="stable")
    place = np.append(order.argsort(), len(order))
    paths = np.full((len(walks), max(map(len, walks))), len(order))
    for row, walk in enumerate(walks):
        paths[row, : len(walk)] = walk
    return Pack(
        tokens=torch.tensor(tokens),
        depths=torch.tensor(depths),
        sees=torch.from_numpy(sees),
        edge_nodes=torch.from_numpy(ends[order, 0].copy()),
        edge_tokens=torch.from_numpy(ends[order, 1].copy()),
        first_edges=np.searchsorted(ends[order, 0], np.arange(len(tokens) + 1)).tolist(),
        paths=torch.from_numpy(place[paths]),
    )


def _sum_edges(decoder: AnswerDecoder, states: Tensor, part: Pack) -> Tensor:
    """States (b, N, d) -> log-likelihood of each candidate (b, U); the output layer sees a few nodes at a time."""
    batch, nodes = states.shape[:2]
    edges = states.new_zeros(batch, len(part.edge_nodes) + 1, dtype=torch.float32)  # the last one fills up short paths
    step = max(1, at_once(states.device)[1] // (batch * decoder.head_bias.shape[0]))
    for start in range(0, nodes, step):
        stop = min(start + step, nodes)
        logits = decoder.project(states[:, start:stop]).float()  # (b, n, vocabulary)
        own = slice(part.first_edges[start], part.first_edges[stop])
        node = part.edge_nodes[own] - start
        edges[:, own] = logits[:, node, part.edge_tokens[own]] - logits.logsumexp(-1)[:, node]
    return edges[:, part.paths].sum(-1)  # (b, U, longest) -> (b, U)


def rank_in_buckets(
    decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, ordered: list[Tokens], chunk: int
) -> Tensor:
    """`rank_answers` without a trie, for any causal decoder -> (B, U): rows of one length share a pass."""
    scores = memory.new_zeros(len(memory), len(ordered), dtype=torch.float32)
    for row, (states, real) in enumerate(zip(memory, memory_mask, strict=True)):
        states = states[real][None]  # (S, d) -> (1, s, d): without padding, since not every decoder heeds a memory mask
        by_length = sorted(range(len(ordered)), key=lambda i: len(ordered[i]))
        for length, bucket in groupby(by_length, key=lambda i: len(ordered[i])):
            for places in torch.tensor(list(bucket)).split(max(1, chunk // length)):
                ids = torch.tensor([ordered[i] for i in places], device=memory.device)  # (C, L)
                logits = decoder(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.ones_like(ids[:, :-1]),
                    encoder_hidden_states=states.expand(len(ids), -1, -1),
                    encoder_attention_mask=ids.new_ones(len(ids), states.shape[1]),
                ).logits.float()  # (C, L-1, vocabulary)
                scores[row, places] = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).sum((1, 2))  # (C,)
    return scores


def _checked(decoder: Any, memory: Tensor, memory_mask: Tensor, candidates: Sequence[Sequence[int]]) -> list[Tokens]:
    """The candidates as tuples; see `rank_answers` for what is refused."""
    if getattr(decoder, "training", False):
        raise InputError("the decoder is in training mode, dropout would change the scores: call decoder.eval() first")
    if len(empty := (~memory_mask.bool().any(1)).nonzero()):
        raise InputError(f"memory_mask[{int(empty[0])}] masks the whole memory; leave at least one position")
    sequences = [tuple(int(token) for token in candidate) for candidate in candidates]
    if not sequences:
        raise InputError("candidates: the list is empty; give at least one answer")
    ours = isinstance(decoder, AnswerDecoder)  # another's sizes are unknown
    vocabulary = len(decoder.head_bias) if ours else 2**31
    positions = decoder.position_embeddings.num_embeddings if ours else 2**31
    for number, sequence in enumerate(sequences):
        where = f"candidates[{number}]"
        if not 2 <= len(sequence) <= positions + 1:
            raise InputError(
                f"{where} has {len(sequence)} tokens; give [CLS], an answer and [SEP], {positions + 1} at most"
            )
        if wrong := [token for token in sequence if not 0 <= token < vocabulary]:
            raise InputError(
                f"{where} has token id {wrong[0]}, the vocabulary {vocabulary}: use the decoder's tokenizer"
            )
    return sequences
