"""Fusion modules: shared blocks, modality co-attention (Fig. 2 c) and gated cross-attention (Fig. 3, Eq. 14-16).

Shapes: B samples, S tokens of one side, T tokens of the other, M knowledge tokens, d = width, h heads; masks are
boolean, True on real tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.networks.rows import in_rows

PairType = Literal["image_text", "image_image", "text_text"]
PAIR_TYPES: tuple[PairType, ...] = ("image_text", "image_image", "text_text")
KeysValues = tuple[Tensor, Tensor]  # of one layer, (B, h, T, d/h) each


class Attention(nn.Module):
    """Multi-head attention with output projection, residual and layer norm; self-attention without `context`."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # epsilon and place (after the residual) as in BERT (point 36)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, d) -> (B, h, S, d/h)

    def keys_values(self, attended: Tensor) -> KeysValues:
        """attended (B, T, d) -> keys and values, each (B, h, T, d/h)."""
        return self._split(self.key(attended)), self._split(self.value(attended))

    def forward(
        self,
        x: Tensor,
        context: Tensor | KeysValues | None = None,
        mask: Tensor | None = None,
        shown: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, S, d), context (B or 1, T, d), mask (B or 1, T), or one per query (1, 1, S, T) -> (B, S, d).

        `context` may also be its `keys_values`. The attention weights (B, h, S, T) are appended to `shown`.
        """
        q = self._split(self.query(x))  # (B, h, S, d/h)
        context = x if context is None else context
        k, v = context if isinstance(context, tuple) else self.keys_values(context)  # (B or 1, h, T, d/h)
        allowed = mask[:, None, None, :] if mask is not None and mask.dim() == 2 else mask  # (B or 1, 1, 1 or S, T)
        k, v = (each.expand(len(q), -1, -1, -1) for each in (k, v))  # (B, h, T, d/h): one context serves all
        dropout = self.dropout if self.training else 0.0
        if shown is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)  # (B, h, S, d/h)
        else:
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, h, S, T)
            scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
            shown.append(scores.float().softmax(-1))  # (B, h, S, T)
            mixed = F.dropout(shown[-1].to(v.dtype), dropout, self.training) @ v  # (B, h, S, d/h)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, h, S, d/h) -> (B, S, d)
        return self.norm(x + F.dropout(self.output(mixed), dropout, self.training))  # (B, S, d)


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual and layer norm; the hidden layer is four times as wide."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.inner(x))  # (B, S, d) -> (B, S, 4d)
        return self.norm(x + F.dropout(self.output(hidden), self.dropout, self.training))  # (B, S, d)


class TransformerLayer(nn.Module):
    """Self-attention among the tokens of one side, cross-attention (if any) to those of the other, feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float, cross: bool = True):
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout) if cross else None
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self,
        x: Tensor,
        other: Tensor | KeysValues | None,
        mask: Tensor | None,
        other_mask: Tensor | None,
        shown: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, S, d), other side (B, T, d) or its keys and values -> (B, S, d); `shown`: of the cross-attention."""
        x = self.self_attention(x, mask=mask)  # (B, S, d)
        if self.cross_attention is not None:
            x = self.cross_attention(x, other, other_mask, shown)  # (B, S, d)
        return self.feed_forward(x)


class CoAttention(nn.Module):
    """Modality co-attention: L layers in two streams, one for image, one for text tokens (Fig. 2 c, point 12).

    In a pair of one modality both sides run through that modality's stream, so the pair is symmetric (point 13). A
    learned embedding per pair type tells the streams what kind of partner they attend to.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.image_stream = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.text_stream = nn.ModuleList(TransformerLayer(width, heads, dropout) for _ in range(layers))
        self.pair_embedding = nn.Embedding(len(PAIR_TYPES), width)

    @in_rows
    def forward(
        self,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None,
        b_mask: Tensor | None,
        pair_type: PairType = "image_text",
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """a (B, S, d), b (B, T, d) -> both, co-attended; if wanted, weights [(B, h, S, T), (B, h, T, S)] by layer."""
        kind = self.pair_embedding.weight[PAIR_TYPES.index(pair_type)]  # (d,)
        a, b = a + kind, b + kind
        a_stream = self.text_stream if pair_type == "text_text" else self.image_stream
        b_stream = self.image_stream if pair_type == "image_image" else self.text_stream
        attentions = [[] for _ in a_stream] if return_weights else []
        for layer, (a_layer, b_layer) in enumerate(zip(a_stream, b_stream, strict=True)):
            shown = attentions[layer] if return_weights else None
            a, b = a_layer(a, b, a_mask, b_mask, shown), b_layer(b, a, b_mask, a_mask, shown)
        return a, b, attentions


class GatedCrossAttention(nn.Module):
    """Selective knowledge fusion (section 3.4.1): encode prior knowledge, attend to it, and admit it through a gate."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.knowledge_attention = Attention(width, heads, dropout)
        self.knowledge_feed_forward = FeedForward(width, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.gate = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, dropout)

    def encode_knowledge(self, knowledge: Tensor) -> Tensor:
        """Token embeddings of the prior knowledge (1, M, d) -> F_p (1, M, d); once per batch, not per sample."""
        return self.knowledge_feed_forward(self.knowledge_attention(knowledge))

    def forward(self, joint: Tensor, knowledge: Tensor, use_gate: bool = True) -> tuple[Tensor, Tensor]:
        """joint F_i (B, S, d) and encoded knowledge F_p (1, M, d) -> F'_i (B, S, d) and G (B, S, d), 1 without gate."""
        fused = self.cross_attention(joint, knowledge)  # F_{p,i}, Eq. 14: (B, S, d)
        gate = torch.sigmoid(self.gate(fused)) if use_gate else torch.ones_like(fused)  # Eq. 15 (point 35): (B, S, d)
        return self.feed_forward(gate * fused + (1 - gate) * joint), gate  # Eq. 16: (B, S, d) each
