"""MLIP's network: two encoders with projections (Eq. 3 and 9), parts that only pre-training uses, and answers.

Shapes: B samples, p image patches (+1 [CLS]), t text tokens, n tokens of either; w width, d of the shared space.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.core.errors import InputError
from amif_lib.networks import pretrained, tokenizers
from amif_lib.networks.answering import Answerer
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.encoders import ImageEncoder, TextEncoder, initialise
from amif_lib.networks.fusion import Attention, CoAttention
from amif_lib.networks.rows import in_rows
from amif_lib.networks.sizes import ModelSpec

HEADS = 4  # of the self-attention after the projections
CORE = 128  # largest side of Tucker's core, which has side^3 numbers


class Towers(nn.Module):
    """The part that fine-tuning takes over from pre-training: both encoders."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.spec = spec
        self.image_encoder = ImageEncoder(spec)
        self.text_encoder = TextEncoder(spec)


class MLIP(Towers):
    """Both encoders with their projections to the shared space."""

    def __init__(self, spec: ModelSpec):
        super().__init__(spec)
        if spec.projection_dim % HEADS:
            raise InputError(f"model.projection_dim: {spec.projection_dim} is not a multiple of {HEADS}; change it")
        self.image_projection = Projection(spec.width, spec.projection_dim, spec.dropout)
        self.text_projection = Projection(spec.width, spec.projection_dim, spec.dropout)

    def save(self, folder: Path) -> None:
        """Write weights and `config.json`."""
        pretrained.save(self.state_dict(), {"architecture": "MLIP", "model": self.spec.model_dump()}, folder)


class Projection(nn.Module):
    """h, self-attention and layer norm of Eq. 3 and 9: map all tokens of an encoder to the shared space."""

    def __init__(self, width: int, dim: int, dropout: float):
        super().__init__()
        self.linear, self.attention = nn.Linear(width, dim), Attention(dim, HEADS, dropout)
        initialise(self, width)

    @in_rows
    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """tokens (B, 1 + n, w), [CLS] first, and mask (B, 1 + n) -> tokens (B, 1 + n, d), attention of [CLS] (B, n).

        The attention is that of [CLS] to the other tokens, mean over heads, without gradient.
        """
        shown: list[Tensor] = []  # (B, h, 1 + n, 1 + n)
        x = self.attention(self.linear(tokens), mask=mask, shown=shown)  # (B, 1 + n, w) -> (B, 1 + n, d)
        return x, shown[0][:, :, 0, 1:].mean(1).detach()  # (B, h, 1 + n, 1 + n) -> (B, n)


class KnowledgeAttention(nn.Module):
    """Cross-modal attention of tokens to entities (Eq. 10). It has no residual, so that z holds knowledge only."""

    def __init__(self, dim: int):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))

    def forward(self, tokens: Tensor, entities: Tensor, known: Tensor) -> Tensor:
        """tokens (B, n, d), entities (B, e, d), which of them are `known` (B, e) -> z (B, n, d)."""
        keys, values = self.key(entities), self.value(entities)  # (B, e, d) each
        return F.scaled_dot_product_attention(self.query(tokens), keys, values, attn_mask=known[:, None])  # (B, n, d)


class TuckerFusion(nn.Module):
    """Q = ((T_c x1 v) x2 t) x3 W_o (Eq. 14). If v and t have more than `CORE` dimensions, they are reduced first."""

    def __init__(self, dim: int):
        super().__init__()
        side = min(dim, CORE)
        self.reduce = nn.ModuleList(nn.Linear(dim, side) if dim > side else nn.Identity() for _ in range(2))
        self.core, self.output = nn.Bilinear(side, side, side, bias=False), nn.Linear(side, dim, bias=False)

    def forward(self, v: Tensor, t: Tensor) -> Tensor:
        """v and t (B, d) -> Q (B, d)."""
        return self.output(self.core(self.reduce[0](v), self.reduce[1](t)))


def attend(x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(x y^T / sqrt d) y: x (B, n, d) attends to y (B, m, d), where `mask` (B, m) is True -> (B, n, d)."""
    return F.scaled_dot_product_attention(x, y, y, attn_mask=None if mask is None else mask[:, None])


class MLIPForVQA(Answerer):
    """MLIP's encoders under co-attention and the kit's answer decoder, neither of which MLIP pre-trains."""

    def __init__(self, spec: ModelSpec, tokenizer: Any, question_length: int = 32, answer_length: int = 32):
        super().__init__()
        self.spec, self.tokenizer = spec, tokenizer
        self.question_length, self.answer_length = question_length, answer_length
        self.mlip = Towers(spec)
        self.co_attention = CoAttention(spec.width, spec.fusion_layers, spec.fusion_heads, spec.dropout)
        initialise(self.co_attention, spec.width)
        layers, heads = (spec.decoder_layers, spec.decoder_cross_layers), (spec.text_heads, spec.text_positions)
        self.decoder = AnswerDecoder(spec.vocab_size, spec.width, *layers, *heads, spec.dropout)
        initialise(self.decoder, spec.width)

    def encode(self, images: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W), question ids and mask (B, t) -> fused tokens (B, p+1+t, w) and their mask."""
        image = self.mlip.image_encoder(images).expand(len(ids), -1, -1)  # (B, p+1, w); one blank image serves all
        text = self.mlip.text_encoder(ids, mask)  # (B, t, w)
        image, text, _ = self.co_attention(image, text, None, mask)
        return torch.cat([image, text], dim=1), torch.cat([mask.new_ones(image.shape[:2]), mask], dim=1)

    def save_pretrained(self, folder: Path) -> None:
        """Write weights, `config.json` and the tokenizer to `folder`."""
        lengths = {"question_length": self.question_length, "answer_length": self.answer_length}
        content = {"architecture": "MLIPForVQA", "model": self.spec.model_dump()} | lengths
        pretrained.save(self.state_dict(), content, folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> MLIPForVQA:
        """Load from a folder written by `save_pretrained`, else InputError. Returned in evaluation mode."""
        content, tokenizer = pretrained.config(folder), tokenizers.load(folder)
        if (found := content.get("architecture")) != "MLIPForVQA":
            raise InputError(f"{folder / 'config.json'}: architecture is {found!r}; give a fine-tuning of MLIP")
        lengths = {name: content[name] for name in ("question_length", "answer_length")}
        model = cls(ModelSpec(**content["model"]), tokenizer, **lengths)
        pretrained.load_into(model, pretrained.read_state(folder), str(folder))
        return model.eval()
