"""Fusion modules: the blocks they share, modality co-attention (Fig. 2 c) and gated cross-attention (Fig. 3, Eq. 14-16).

Shapes: B samples, S tokens of one side, T tokens of the other, M knowledge tokens, d = width, h heads.
Masks are boolean, True on real tokens. Norms come after the residual, as in BERT, unless `pre_norm` says otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.networks.rows import in_rows

PairType = Literal["image_text", "image_image", "text_text"]
PAIR_TYPES: tuple[PairType, ...] = ("image_text", "image_image", "text_text")


class Attention(nn.Module):
    """Multi-head attention with output projection, residual and layer norm.

    Self-attention when `context` is None. A context of batch 1, or of a batch that divides the query's, is projected to
    keys and values once and then repeated, so that knowledge and ranked candidates cost no copies of it. With `pre_norm`
    the norm is on x before attention (a context is attended to as it is) and the residual stays unnormed.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.dropout, self.pre_norm = heads, dropout, pre_norm
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, S, d) -> (B, h, S, d/h)

    def keys_values(self, attended: Tensor) -> tuple[Tensor, Tensor]:
        """attended (B, T, d) -> keys and values, each (B, h, T, d/h)."""
        return self._split(self.key(attended)), self._split(self.value(attended))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        return_weights: bool = False,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """x (B, S, d), context (B', T, d), mask of the attended side -> (B, S, d) and, if asked, (B, h, S, T).

        The mask is (B', T), or (B' or 1, 1, S, T) where each query sees its own part. `kept` are `keys_values` of the
        attended side from before; they take the place of `context`.
        """
        asking = self.norm(x) if self.pre_norm else x
        q = self._split(self.query(asking))
        k, v = self.keys_values(asking if context is None else context) if kept is None else kept
        allowed = mask[:, None, None, :] if mask is not None and mask.dim() == 2 else mask  # (B', 1, 1, T)
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
            mixed = F.dropout(weights.to(v.dtype), dropout, self.training) @ v  # (B, h, S, d/h)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, h, S, d/h) -> (B, S, d)
        out = x + F.dropout(self.output(mixed), dropout, self.training)
        out = out if self.pre_norm else self.norm(out)
        return (out, weights) if return_weights else out


class FeedForward(nn.Module):
    """Two linear layers with GELU, residual and layer norm; the hidden layer is four times as wide."""

    def __init__(self, width: int, dropout: float = 0.0, pre_norm: bool = False):
        super().__init__()
        self.inner = nn.Linear(width, 4 * width)
        self.output = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.dropout, self.pre_norm = dropout, pre_norm

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(self.norm(x) if self.pre_norm else x)  # (B, S, d) -> (B, S, 4d)
        out = x + F.dropout(self.output(F.gelu(hidden)), self.dropout, self.training)  # (B, S, d)
        return out if self.pre_norm else self.norm(out)


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

    `form` (point 12): "two_stream" is M3AE's; "one_way" is ALBEF's, one stream in which b attends to a, and a comes out
    as it went in; "shared" is one stream for both sides. `same_modality` (point 13): "modality" as said above; "slot" sends
    a through the image stream and b through the text stream whatever they are; "separate" has a stream per such pair.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        form: Literal["two_stream", "one_way", "shared"] = "two_stream",
        same_modality: Literal["modality", "slot", "separate"] = "modality",
    ):
        super().__init__()
        self.form, self.same_modality = form, same_modality

        def stream(exists: bool = True) -> nn.ModuleList | None:
            return nn.ModuleList(CoAttentionLayer(width, heads, dropout) for _ in range(layers)) if exists else None

        self.image_stream = stream(form == "two_stream")
        self.text_stream = stream()
        self.image_image_stream = stream(same_modality == "separate")
        self.text_text_stream = stream(same_modality == "separate")
        self.pair_embedding = nn.Embedding(len(PAIR_TYPES), width)

    def _streams(self, pair_type: PairType) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The layers that a and b run through."""
        image = self.text_stream if self.image_stream is None else self.image_stream
        if pair_type == "image_text" or self.same_modality == "slot":
            return image, self.text_stream
        if self.same_modality == "separate":
            own = self.image_image_stream if pair_type == "image_image" else self.text_text_stream
        else:
            own = image if pair_type == "image_image" else self.text_stream
        return own, own

    @in_rows
    def forward(
        self,
        a: Tensor,
        b: Tensor,
        a_mask: Tensor | None,
        b_mask: Tensor | None,
        pair_type: PairType = "image_text",
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor | None, Tensor | None]]]:
        """a (B, S, d) and b (B, T, d) -> both co-attended, and per layer the cross-attention weights if asked.

        The weights are (B, h, S, T) of a on b, None in the one-way form, and (B, h, T, S) of b on a.
        """
        kind = self.pair_embedding.weight[PAIR_TYPES.index(pair_type)]  # (d,)
        one_way = self.form == "one_way"
        a, b = a if one_way else a + kind, b + kind
        attentions = []
        for a_layer, b_layer in zip(*self._streams(pair_type), strict=True):
            (a, a_weights), (b, b_weights) = (
                (a, None) if one_way else a_layer(a, b, a_mask, b_mask, return_weights),
                b_layer(b, a, b_mask, a_mask, return_weights),
            )
            attentions.append((a_weights, b_weights))
        return a, b, attentions


class GatedCrossAttention(nn.Module):
    """Selective knowledge fusion (section 3.4.1): knowledge is encoded, attended to, and let through by a gate."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        gate_input: Literal["fused", "both"] = "fused",
        pre_norm: bool = False,
    ):
        super().__init__()
        self.knowledge_attention = Attention(width, heads, dropout, pre_norm)
        self.knowledge_feed_forward = FeedForward(width, dropout, pre_norm)
        self.cross_attention = Attention(width, heads, dropout, pre_norm)
        self.gate_input = gate_input
        self.gate = nn.Linear(width if gate_input == "fused" else 2 * width, width)
        self.feed_forward = FeedForward(width, dropout, pre_norm)

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
