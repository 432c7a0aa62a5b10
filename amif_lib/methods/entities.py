"""Vectors for the entities of a knowledge graph (TransE, then graph attention), and which tokens of a text name them.

Shapes: E entities, R relations, n triples, k dimensions; B texts of t tokens, e entities in a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.data import knowledge_graph
from amif_lib.data.knowledge_graph import KnowledgeGraph, Linker
from amif_lib.networks.pixels import keyed

MARGIN, NEGATIVES, STEPS, RATE = 5.0, 25, 400, 0.05  # of `transe`; margin and negatives are ARL's
TRANSE = 2**31 + 2  # no sample has this number, so this random stream differs from those that draw samples


def read_graph(source: str, texts: Sequence[str], dim: int, seed: int) -> tuple[KnowledgeGraph, Tensor, dict[str, Any]]:
    """The graph that `knowledge.source` names, TransE's vectors (E, k) of its entities, and `metrics.json`'s entries.

    Raises InputError if the knowledge cannot be used (`knowledge_graph.read`).
    """
    graph = knowledge_graph.read(source, texts)
    triples, entities, relations = torch.from_numpy(graph.triples), len(graph.entities), len(graph.relations)
    table, moves = transe(triples, entities, relations, dim, keyed(seed, TRANSE))
    metrics = {"entities": entities, "relations": relations, "triples": len(triples)}
    metrics |= {"triples_left_out": graph.left_out, "transe_mrr": filtered_mrr(triples, table, moves)}
    return graph, table, metrics | {"files_sha256": knowledge_graph.content(source)}


def transe(
    triples: Tensor, entities: int, relations: int, dim: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Vectors of entities (E, k) and relations (R, k) with head + relation near tail (TransE, Bordes et al., 2013).

    triples (n, 3). Each step compares each triple with negatives: the same triple with a random head or a random tail.
    Its L1 distance should be smaller than theirs by a margin. A negative that is itself a known triple is ignored.
    """
    bound = 6 / dim**0.5  # TransE's uniform initialisation
    table, moves = (torch.empty(n, dim).uniform_(-bound, bound, generator=generator) for n in (entities, relations))
    table, moves = (F.normalize(x, dim=1).requires_grad_() for x in (table, moves))
    optimizer = torch.optim.Adam([table, moves], lr=RATE)
    known = _key(*triples.unbind(1), entities)  # (n,)
    h, r, t = triples.repeat_interleave(NEGATIVES, dim=0).unbind(1)  # (n',) each, with n' = n * NEGATIVES
    for _ in range(STEPS):
        other = torch.randint(entities, (len(h),), generator=generator)  # (n',)
        head = torch.rand(len(h), generator=generator) < 0.5  # (n',): which end is replaced
        h_, t_ = torch.where(head, other, h), torch.where(head, t, other)  # (n',) each
        worse = distance(table[h_], moves[r], table[t_])  # (n',)
        real = torch.isin(_key(h_, r, t_, entities), known)  # (n',): a known triple, so no negative
        loss = F.relu(MARGIN + distance(table[h], moves[r], table[t]) - worse)[~real].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            table /= table.norm(dim=1, keepdim=True)  # without this, longer vectors would lower the loss
    return table.detach(), moves.detach()


def distance(head: Tensor, relation: Tensor, tail: Tensor) -> Tensor:
    """L1 distance between head + relation and tail: (..., k) -> (...)."""
    return (head + relation - tail).abs().sum(-1)


def filtered_mrr(triples: Tensor, table: Tensor, relations: Tensor) -> float:
    """Mean reciprocal rank (1: perfect) of the right tail and the right head of each triple, ranked by distance.

    triples (n, 3), table (E, k), relations (R, k). Other entities that make a known triple too are left out of the
    ranking ("filtered"; Bordes et al., 2013). Half of the entities at the same distance count as nearer.
    """
    every, reciprocal = torch.arange(len(table)), []
    known = _key(*triples.unbind(1), len(table))  # (n,)
    for h, r, t in triples:
        tails, heads = _key(h, r, every, len(table)), _key(every, r, t, len(table))  # (E,) each
        by_tail = distance(table[h], relations[r], table)  # (E,)
        by_head = distance(table, relations[r], table[t])  # (E,)
        for found, right, keys in ((by_tail, t, tails), (by_head, h, heads)):
            others = ~torch.isin(keys, known)  # (E,)
            before = (found < found[right])[others].sum() + 0.5 * (found == found[right])[others].sum()
            reciprocal.append(1 / (1 + float(before)))
    return sum(reciprocal) / len(reciprocal)


def _key(head: Tensor, relation: Tensor, tail: Tensor, entities: int) -> Tensor:
    """A number that only this triple has: (n,) each -> (n,)."""
    return (relation * entities + head) * entities + tail


class GraphAttention(nn.Module):
    """A layer of a graph attention network (Veličković et al., 2018); the same as torch_geometric's `GATConv`."""

    def __init__(self, width: int, out: int, heads: int):
        super().__init__()
        self.linear = nn.Linear(width, heads * out, bias=False)
        self.source, self.target = (nn.Parameter(torch.empty(heads, out)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(heads * out))
        for weight in (self.linear.weight, self.source, self.target):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """x (E, k) -> (E, heads * out). edges (2, m): source and target; each entity also needs an edge to itself."""
        x = self.linear(x).float().unflatten(1, self.source.shape)  # (E, h, c), fp32
        source, target = edges
        score = F.leaky_relu((x * self.source).sum(-1)[source] + (x * self.target).sum(-1)[target], 0.2)  # (m, h)
        highest = torch.full_like(x[..., 0].detach(), -torch.inf)  # (E, h)
        highest.scatter_reduce_(0, target[:, None].expand_as(score), score.detach(), "amax")
        weight = (score - highest[target]).exp()  # (m, h): softmax over the edges that end at the same entity
        total = torch.zeros_like(x[..., 0]).index_add(0, target, weight)  # (E, h)
        mixed = torch.zeros_like(x).index_add(0, target, (weight / total[target])[..., None] * x[source])  # (E, h, c)
        return mixed.flatten(1) + self.bias  # (E, h, c) -> (E, h * c)


class EntityEncoder(nn.Module):
    """Two layers of graph attention on TransE's table, trained too; a triple (n, 3) is an edge in both directions."""

    def __init__(self, entities: int, triples: Tensor, dim: int, heads: int = 8, dropout: float = 0.0):
        super().__init__()
        own = torch.arange(entities)
        ends = triples[:, [0, 2]].T  # (2, n)
        self.register_buffer("edges", torch.cat([ends, ends.flip(0), own.expand(2, -1)], dim=1).unique(dim=1))
        self.table = nn.Embedding(entities, dim)
        self.norm = nn.LayerNorm(dim)
        self.first, self.second = GraphAttention(dim, dim // 4, heads), GraphAttention(heads * dim // 4, dim, 1)
        self.dropout = dropout

    def forward(self) -> Tensor:
        """Vectors of all entities (E, k), from the table and the graph."""
        x = F.dropout(self.norm(self.table.weight), self.dropout, self.training)  # (E, k)
        x = F.dropout(F.elu(self.first(x, self.edges)), self.dropout, self.training)  # (E, 2k)
        return self.second(x, self.edges)  # (E, k)


def linked(
    linker: Linker, number_of: Mapping[str, int], tokenizer: Any, ids: Tensor, mask: Tensor, most: int = 24
) -> tuple[Tensor, Tensor]:
    """The entities that each text names, each listed once, and the tokens of all their mentions.

    ids and mask (B, t) of WordPiece tokens -> entity numbers (B, e), padded with -1, and spans (B, e, t). The texts are
    rebuilt from their tokens: what was cut off names no entity. Only the first `most` entities of a text are used.
    """
    found: list[dict[int, list[int]]] = []  # for each text: positions of each entity's tokens
    special = set(tokenizer.all_special_ids)
    for row, real in zip(ids.tolist(), mask.tolist(), strict=True):
        text, spans, tokens = "", [], {}
        for token, piece in zip(row, tokenizer.convert_ids_to_tokens(row), strict=True):
            text += "" if piece.startswith("##") else " "
            spans.append((len(text), len(text) + len(piece.removeprefix("##"))))
            text += "|" * len(piece) if token in special else piece.removeprefix("##")  # `|` is part of no name
        for start, end, entity in linker.link(text):
            inside = [i for i, (a, b) in enumerate(spans) if start < b and a < end and real[i]]
            tokens.setdefault(number_of[entity], []).extend(inside)
        found.append(dict(list(tokens.items())[:most]))
    most = max(map(len, found), default=0)
    numbers = torch.full((len(ids), max(1, most)), -1)  # (B, e)
    spans = torch.zeros(len(ids), max(1, most), ids.shape[1], dtype=torch.bool)  # (B, e, t)
    for i, tokens in enumerate(found):
        for j, (number, inside) in enumerate(tokens.items()):
            numbers[i, j], spans[i, j, inside] = number, True
    return numbers.to(ids.device), spans.to(ids.device)
