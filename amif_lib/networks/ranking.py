"""Exact answer ranking: the log-likelihood of every candidate answer under an autoregressive decoder.

The paper takes "the one with the lowest language modeling loss" among the candidate answers (supplement section 6).
Here that loss is the plain sequence negative log-likelihood in fp32: every token once, the end token once, no label
smoothing and no first-token filter. (ALBEF counts the first token twice and ranks only the 128 candidates whose first
token is likeliest; BLIP smooths labels while it ranks.)

All candidates of a question are one packed sequence: the nodes of their prefix trie. A node stands at the position that is
its depth and sees its ancestors and itself, so that its state is what it would be in each candidate that it begins. Every
distinct prefix is computed once, and the question's memory is turned into keys and values once. Layers of our decoder that
lie below its first cross-attention know nothing of the question: they run once for all questions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks.decoder import AnswerDecoder

WHOLE_LOGITS = 2**27  # logits in memory at once where a pass returns them whole: 512 MiB in fp32


def tokens_at_once(device: torch.device) -> int:
    """Tokens in one forward pass: enough to fill a GPU; on a CPU few enough that what lies between two layers stays in its cache."""
    return 4096 if device.type == "cuda" else 1024


def logits_at_once(device: torch.device) -> int:
    """Logits in memory at once where the output layer can be applied in parts: 128 MiB in fp32 on a GPU, 4 MiB on a CPU."""
    return 2**25 if device.type == "cuda" else 2**20


@torch.no_grad()
def rank_answers(
    decoder: Callable[..., Any],
    memory: Tensor,
    memory_mask: Tensor,
    candidates: Sequence[Sequence[int]],
    *,
    pack: int = 256,
    chunk: int | None = None,
) -> Tensor:
    """Log-likelihood of each candidate answer for each question.

    Parameters
    ----------
    decoder
        Ours, or called as `decoder(input_ids=, attention_mask=, encoder_hidden_states=, encoder_attention_mask=)`; the
        returned object's `logits` (N, T, vocabulary) predict at position t the token at t + 1. Causal, in eval mode.
        One whose `forward` names `position_ids` and whose attention takes a 4-D mask (Hugging Face's BERT, BLIP,
        RoBERTa and others with "sdpa" or "eager") is given the trie; any other, the candidates in buckets of one length
        (`rank_in_buckets`): equal, but slower.
    memory : (B, S, d)
        What the decoder cross-attends to, one row per question.
    memory_mask : (B, S)
        1 or True where the memory is real. Masked positions never change a result.
    candidates
        K token-id sequences as a BERT tokenizer makes them, `[CLS] ... [SEP]`. The first token starts the decoder and
        is not scored; the last is the end token and is scored once. Equal sequences are scored once and share a value.
    pack
        Most trie nodes in one packed sequence (one candidate at least); a larger trie is cut along its subtrees.
    chunk
        Most tokens in one forward pass, all questions together (one pack of one question at least); by default
        `tokens_at_once`. Both bound the memory taken and never change a result by more than rounding.

    Returns
    -------
    (B, K) float32, natural logarithm: `sum_t log p(token_t | tokens before t, memory)`.

    Raises
    ------
    InputError
        Where there is no candidate, a candidate has nothing to score, has an id outside the vocabulary or is longer than
        the position table, shapes disagree, a question has no memory or one that is not finite, or the decoder is
        training.
    """
    sequences, distinct = _checked(decoder, memory, memory_mask, candidates)
    if not _takes_a_trie(decoder):
        return rank_in_buckets(decoder, memory, memory_mask, candidates, chunk=chunk)
    vocabulary, chunk = _sizes(decoder)[0], chunk or tokens_at_once(memory.device)
    if vocabulary and not isinstance(decoder, AnswerDecoder):
        chunk = min(chunk, max(1, WHOLE_LOGITS // vocabulary))
    ordered = sorted(distinct)
    packs = [pack_trie(part).to(memory.device) for part in cut(ordered, min(pack, chunk))]
    together = max(1, chunk // max(len(part.tokens) for part in packs))  # questions in a pass

    rank = _rank_ours(decoder, packs) if isinstance(decoder, AnswerDecoder) else _rank_theirs(decoder, packs)

    def score(memory: Tensor, memory_mask: Tensor) -> Tensor:
        return torch.cat([rank(*few) for few in zip(memory.split(together), memory_mask.split(together), strict=True)])

    return _in_order(_for_all(decoder, memory, memory_mask, score), ordered, sequences)  # (B, K)


def _for_all(
    decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, score: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """`score` of all questions (B, U). A decoder not ours gets those of one memory length at a time, without padding.

    So it need not heed a memory mask: transformers' BLIP (5.23) takes one and ignores it.
    """
    memory_mask = memory_mask.bool()
    if isinstance(decoder, AnswerDecoder) or bool(memory_mask.all()):
        return score(memory.masked_fill(~memory_mask[..., None], 0), memory_mask)  # 0 times infinity is not 0
    lengths = memory_mask.sum(1)  # (B,)
    found, places = [], []
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        real = memory[rows][memory_mask[rows]].view(len(rows), length, -1)
        found.append(score(real, torch.ones_like(real[..., 0], dtype=torch.bool)))
        places.append(rows)
    return torch.cat(found)[torch.cat(places).argsort()]


@dataclass
class Pack:
    """Part of a prefix trie as one sequence of N nodes, in depth-first order. An edge leads from a node to a next token."""

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


def cut(ordered: Sequence[tuple[int, ...]], most: int) -> Iterable[list[tuple[int, ...]]]:
    """Sorted candidates in runs whose tries have at most `most` nodes (one candidate at least): neighbours share subtrees."""
    run: list[tuple[int, ...]] = []
    nodes = 0
    for sequence in ordered:
        shared = 0
        if run:
            pairs = zip(run[-1][:-1], sequence[:-1], strict=False)  # the last token is never read
            shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(run[-1]), len(sequence)) - 1)
        new = len(sequence) - 1 - shared
        if run and nodes + new > most:
            yield run
            run, nodes, new = [], 0, len(sequence) - 1
        run.append(sequence)
        nodes += new
    yield run


def pack_trie(sequences: Sequence[tuple[int, ...]]) -> Pack:
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


def _rank_ours(decoder: AnswerDecoder, packs: Sequence[Pack]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function that ranks all packs for a few questions -> (B, U). Layers below the first cross-attention run here, once."""
    blind, nothing = decoder.blind_layers, [None] * len(decoder.layers)
    begun = [
        decoder.run(decoder.embed(part.tokens[None], part.depths), part.sees[None, None], nothing, None, stop=blind)
        for part in packs
    ]  # each (1, N, d), the same for every question

    def rank(memory: Tensor, memory_mask: Tensor) -> Tensor:
        remembered, scores = decoder.remember(memory), []
        for part, x in zip(packs, begun, strict=True):
            x = x.expand(len(memory), -1, -1)  # (B, N, d)
            x = decoder.run(x, part.sees[None, None], remembered, memory_mask, start=blind)
            scores.append(_sum_edges(x, decoder.project, decoder.head_bias.shape[0], part))
        return torch.cat(scores, dim=1)

    return rank


def _rank_theirs(decoder: Callable[..., Any], packs: Sequence[Pack]) -> Callable[[Tensor, Tensor], Tensor]:
    """As `_rank_ours` for another's decoder; a Hugging Face cache keeps the memory's keys and values from pack to pack."""
    first = _first_position(decoder)

    def rank(memory: Tensor, memory_mask: Tensor) -> Tensor:
        more, scores = {}, []
        if _is_hugging_face(decoder) and len(packs) > 1:
            from transformers import DynamicCache, EncoderDecoderCache

            more = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()), "use_cache": True}
        for part in packs:
            if more:
                more["past_key_values"].self_attention_cache = DynamicCache()
            hidden = torch.zeros(part.sees.shape, dtype=memory.dtype, device=memory.device)
            hidden.masked_fill_(~part.sees, torch.finfo(memory.dtype).min)  # (N, N), added to the attention scores
            logits = decoder(
                input_ids=part.tokens.expand(len(memory), -1),
                attention_mask=hidden.expand(len(memory), 1, -1, -1),
                position_ids=part.depths[None] + first,
                encoder_hidden_states=memory,
                encoder_attention_mask=memory_mask.to(torch.long),
                **more,
            ).logits  # (B, N, vocabulary)
            scores.append(_sum_edges(logits, lambda logits: logits, logits.shape[-1], part))
        return torch.cat(scores, dim=1)

    return rank


def _sum_edges(states: Tensor, project: Callable[[Tensor], Tensor], vocabulary: int, part: Pack) -> Tensor:
    """States (B, N, d) -> log-likelihood of each candidate (B, U), the output layer applied to a few nodes at a time."""
    batch, nodes = states.shape[:2]
    edges = states.new_zeros(batch, len(part.edge_nodes) + 1, dtype=torch.float32)  # the last one fills up short paths
    step = max(1, logits_at_once(states.device) // (batch * vocabulary))
    for start in range(0, nodes, step):
        stop = min(start + step, nodes)
        logits = project(states[:, start:stop]).float()  # (B, n, vocabulary)
        own = slice(part.first_edges[start], part.first_edges[stop])
        node = part.edge_nodes[own] - start
        edges[:, own] = logits[:, node, part.edge_tokens[own]] - logits.logsumexp(-1)[:, node]
    return edges[:, part.paths].sum(-1)  # (B, U, longest) -> (B, U)


def rank_in_buckets(
    decoder: Callable[..., Any],
    memory: Tensor,
    memory_mask: Tensor,
    candidates: Sequence[Sequence[int]],
    *,
    chunk: int | None = None,
) -> Tensor:
    """As `rank_answers`, each distinct candidate a row of its own and rows of one length a pass: for any causal decoder.

    Ours projects the memory to keys and values once a pass; for another it is repeated for every row.
    """
    sequences, distinct = _checked(decoder, memory, memory_mask, candidates)
    ordered, chunk = sorted(distinct, key=lambda s: (len(s), s)), chunk or tokens_at_once(memory.device)

    def score(memory: Tensor, memory_mask: Tensor) -> Tensor:
        found, start = [], 0
        while start < len(ordered):
            length = len(ordered[start])
            most = max(1, chunk // (len(memory) * (length - 1)))
            part = [s for s in ordered[start : start + most] if len(s) == length]
            found.append(_score_rows(decoder, memory, memory_mask, part))
            start += len(part)
        return torch.cat(found, dim=1)

    return _in_order(_for_all(decoder, memory, memory_mask, score), ordered, sequences)


def _score_rows(
    decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, part: list[tuple[int, ...]]
) -> Tensor:
    """Candidates of one length for all questions in one forward pass -> (B, C)."""
    count, batch = len(part), memory.shape[0]
    ids = torch.tensor(part, device=memory.device).repeat(batch, 1)  # (B*C, T): all candidates of question 1, then of 2
    if not isinstance(decoder, AnswerDecoder):  # ours projects keys and values once and repeats those
        memory = memory.repeat_interleave(count, dim=0)  # (B*C, S, d)
        memory_mask = memory_mask.repeat_interleave(count, dim=0)  # (B*C, S)
    logits = decoder(
        input_ids=ids[:, :-1],  # the last token is only predicted, never read
        attention_mask=torch.ones_like(ids[:, :-1]),
        encoder_hidden_states=memory,
        encoder_attention_mask=memory_mask.to(torch.long),
    ).logits.float()  # (B*C, T-1, vocabulary)
    chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)  # (B*C, T-1)
    return chosen.sum(-1).view(batch, count)  # (B, C)


def _in_order(scores: Tensor, distinct: Sequence[tuple[int, ...]], sequences: Sequence[tuple[int, ...]]) -> Tensor:
    """Scores of distinct candidates (B, U) -> of the list as it was given (B, K)."""
    wrong = (~scores.isfinite().all(1)).nonzero()
    if len(wrong):
        raise InputError(f"memory[{int(wrong[0])}] gives log-likelihoods that are not finite; look for NaN in it")
    column = {sequence: index for index, sequence in enumerate(distinct)}
    return scores[:, torch.tensor([column[sequence] for sequence in sequences], device=scores.device)]


def _checked(
    decoder: Callable[..., Any], memory: Tensor, memory_mask: Tensor, candidates: Sequence[Sequence[int]]
) -> tuple[list[tuple[int, ...]], set[tuple[int, ...]]]:
    """The candidates as tuples, all and distinct; see `rank_answers` for what is refused."""
    if memory.dim() != 3 or memory_mask.shape != memory.shape[:2]:
        raise InputError(
            f"memory_mask has shape {tuple(memory_mask.shape)}, memory {tuple(memory.shape)}: give (B, S) and (B, S, d)"
        )
    if len(memory) == 0:
        raise InputError("memory has no row; give one per question")
    if not bool(memory_mask.bool().any(1).all()):
        row = int((~memory_mask.bool().any(1)).nonzero()[0])
        raise InputError(f"memory_mask[{row}] masks the whole memory; leave at least one position per question")
    if getattr(decoder, "training", False):
        raise InputError("the decoder is in training mode, dropout would change the scores: call decoder.eval() first")
    sequences = [tuple(int(token) for token in candidate) for candidate in candidates]
    if not sequences:
        raise InputError("candidates: the list is empty; give at least one answer")
    vocabulary, positions = _sizes(decoder)
    for number, sequence in enumerate(sequences):
        if len(sequence) < 2:
            raise InputError(
                f"candidates[{number}] has {len(sequence)} token(s): give a start token, the answer and an end token"
            )
        if min(sequence) < 0 or (vocabulary and max(sequence) >= vocabulary):
            wrong = min(sequence) if min(sequence) < 0 else max(sequence)
            raise InputError(
                f"candidates[{number}] has token id {wrong}, the decoder's vocabulary {vocabulary or 'no negative one'}: "
                "use the decoder's own tokenizer"
            )
        if positions and len(sequence) - 1 > positions:
            raise InputError(
                f"candidates[{number}] has {len(sequence)} tokens, the decoder's position table {positions}: cut the answer"
            )
    return sequences, set(sequences)


def _is_hugging_face(decoder: Callable[..., Any]) -> bool:
    return isinstance(decoder, nn.Module) and hasattr(decoder, "config") and hasattr(decoder, "base_model")


def _takes_a_trie(decoder: Callable[..., Any]) -> bool:
    """Whether positions and a 4-D mask can be given; by name, since `**kwargs` may swallow them unread."""
    call = decoder.forward if isinstance(decoder, nn.Module) else decoder
    kernel = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
    return "position_ids" in inspect.signature(call).parameters and kernel in (None, "sdpa", "eager")


def _first_position(decoder: Callable[..., Any]) -> int:
    """Position of the first token: 0, or behind the padding index where the position table has one (RoBERTa)."""
    table = getattr(getattr(getattr(decoder, "base_model", None), "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else padding + 1


def _sizes(decoder: Callable[..., Any]) -> tuple[int | None, int | None]:
    """Vocabulary and longest sequence of a decoder, None where it does not say."""
    if isinstance(decoder, AnswerDecoder):
        return decoder.head_bias.shape[0], decoder.position_embeddings.num_embeddings
    config = getattr(decoder, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    return getattr(config, "vocab_size", None), positions and positions - _first_position(decoder)
