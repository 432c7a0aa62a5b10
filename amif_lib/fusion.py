"""Fusion modules: the blocks they share, modality co-attention (Fig. 2 c) and gated cross-attention (Fig. 3, Eq. 14-16).

Shapes: B samples, S tokens of one side, T tokens of the other, M knowledge tokens, d = width, h heads.
Masks are boolean, True on real tokens. Norms come after the residual, as in BERT.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PairType = Literal["image_text", "image_image", "text_text"]
PAIR_TYPES: tuple[PairType, ...] = ("image_text", "image_image", "text_text")


class Attention(nn.Module):
    """Multi-head attention with output projection, residual and layer norm.

    Self-attention when `context` is None. A context of batch 1, or of a batch that divides the query's, is projected to
    keys and values once and then repeated, so that knowledge and ranked candidates cost no copies of it.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, d) -> (B, h, S, d/h)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, S, d), context (B', T, d), mask (B', T) of the attended side -> (B, S, d) and, if asked, (B, h, S, T)."""
        attended = x if context is None else context
        q, k, v = self._split(self.query(x)), self._split(self.key(attended)), self._split(self.value(attended))
        allowed = None if mask is None else mask[:, None, None, :]  # (B', 1, 1, T)
        if k.shape[0] != q.shape[0]:  # one context serves several consecutive queries
            copies = q.shape[0] // k.shape[0]
            k, v = (
                t.repeat_interleave(copies, dim=0) if t.shape[0] > 1 else t.expand(q.shape[0], -1, -1, -1)
                for t in (k, v)
            )
            if allowed is not None:
                allowed = allowed.repeat_interleave(copies, dim=0)
        if causal:
            lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()  # (S, S)
            allowed = lower if allowed is None else allowed & lower
        dropout = self.dropout if self.training else 0.0
        weights = None
        if return_weights:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, h, S, T)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            weights = scores.float().softmax(-1)
            mixed = weights.to(v.dtype) @ v  # (B, h, S, d/h)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, h, S, d/h) -> (B, S, d)
        out = self.norm(x + F.dropout(self.output(mixed), dropout, self.training))
        return (out, weights) if return_weights else out


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual and layer norm; the hidden layer is four times as wide."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.output(F.gelu(self.inner(x)))  # (B, S, d) -> (B, S, 4d) -> (B, S, d)
        return self.norm(x + F.dropout(hidden, self.dropout, self.training))


class CoAttentionLayer(nn.Module):
    """Self-attention over one's own tokens, cross-attention to the partner's, feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self, x: Tensor, partner: Tensor, mask: Tensor | None, partner_mask: Tensor | None, return_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        x = self.self_attention(x, mask=mask)  # (B, S, d)
        weights = None
        if return_weights:
            x, weights = self.cross_attention(x, partner, partner_mask, return_weights=True)  # weights (B, h, S, T)
        else:
            x = self.cross_attention(x, partner, partner_mask)  # (B, S, d)
        return self.feed_forward(x), weights


class CoAttention(nn.Module):
    """Modality co-attention: L layers in two streams, one for image tokens and one for text tokens (Fig. 2 c).

    In a pair of one modality both sides run through that modality's stream, so the pair is symmetric. A learned
    embedding per pair type tells the streams what kind of partner they attend to.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.image_stream = nn.ModuleList(CoAttentionLayer(width, heads, dropout) for _ in range(layers))
        self.text_stream = nn.ModuleList(CoAttentionLayer(width, heads, dropout) for _ in range(layers))
        self.pair_embedding = nn.Embedding(len(PAIR_TYPES), width)

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None,
        b_mask: Tensor | None,
        pair_type: PairType = "image_text",
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor | None, Tensor | None]]]:
        """a (B, S, d) and b (B, T, d) -> both co-attended, and per layer the cross-attention weights if asked."""
        kind = self.pair_embedding.weight[PAIR_TYPES.index(pair_type)]  # (d,)
        a, b = a + kind, b + kind
        a_stream = self.text_stream if pair_type == "text_text" else self.image_stream
        b_stream = self.image_stream if pair_type == "image_image" else self.text_stream
        attentions = []
        for a_layer, b_layer in zip(a_stream, b_stream, strict=True):
            (a, a_weights), (b, b_weights) = (
                a_layer(a, b, a_mask, b_mask, return_weights),
                b_layer(b, a, b_mask, a_mask, return_weights),
            )
            attentions.append((a_weights, b_weights))
        return a, b, attentions


class GatedCrossAttention(nn.Module):
    """Selective knowledge fusion (section 3.4.1): knowledge is encoded, attended to, and let through by a gate."""

    def __init__(self, width: int, heads: int, dropout: float, gate_input: Literal["fused", "both"] = "fused"):
        super().__init__()
        self.knowledge_attention = Attention(width, heads, dropout)
        self.knowledge_feed_forward = FeedForward(width, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.gate_input = gate_input
        self.gate = nn.Linear(width if gate_input == "fused" else 2 * width, width)
        self.feed_forward = FeedForward(width, dropout)

    def encode_knowledge(self, knowledge: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token embeddings of the answer vocabulary (1, M, d) -> F_p (1, M, d); once per batch, not per sample."""
        return self.knowledge_feed_forward(self.knowledge_attention(knowledge, mask=mask))

    @staticmethod
    def mix(gate: Tensor, fused: Tensor, joint: Tensor) -> Tensor:
        """Eq. 16: `G * F_{p,i} + (1 - G) * F_i`, element by element."""
        return gate * fused + (1 - gate) * joint

    def forward(
        self, joint: Tensor, knowledge: Tensor, mask: Tensor | None = None, use_gate: bool = True
    ) -> tuple[Tensor, Tensor]:
        """joint F_i (B, S, d) and encoded knowledge F_p (1, M, d) -> F'_i (B, S, d) and the gate G (B, S, d)."""
        fused = self.cross_attention(joint, knowledge, mask)  # F_{p,i}, Eq. 14: (B, S, d)
        if use_gate:
            seen = fused if self.gate_input == "fused" else torch.cat([fused, joint], dim=-1)
            gate = torch.sigmoid(self.gate(seen))  # Eq. 15: (B, S, d)
        else:
            gate = torch.ones_like(fused)
        return self.feed_forward(self.mix(gate, fused, joint)), gate
