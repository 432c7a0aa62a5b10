"""The answer decoder (section 3.4.2): a causal BERT with cross-attention in its last layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amif_lib.networks.fusion import KeysValues, TransformerLayer


class DecoderOutput(NamedTuple):
    """The part of a Hugging Face decoder's output that is used here."""

    logits: Tensor  # (B, L, vocabulary); logits[:, t] predicts token t + 1


class AnswerDecoder(nn.Module):
    """BERT over answer tokens; its last `cross_layers` layers attend to the image-question tokens F'_i (point 37).

    The output layer shares its weights with the word embeddings (point 38). 122,524,228 parameters at paper size. The
    arguments of `forward` have the names of Hugging Face's decoders, so that `rank_answers` can call either.
    """

    def __init__(
        self, vocab_size: int, width: int, layers: int, cross_layers: int, heads: int, positions: int, dropout: float
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.embedding_norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.blind_layers = layers - cross_layers  # the first layers, whose output depends on the answer alone
        crosses = (layer >= self.blind_layers for layer in range(layers))
        self.layers = nn.ModuleList(TransformerLayer(width, heads, dropout, cross) for cross in crosses)
        self.head_transform = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width, eps=1e-12)  # BERT's
        self.head_bias = nn.Parameter(torch.zeros(vocab_size))
        self.dropout = dropout

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> DecoderOutput:
        """Ids (B, L), memory (B or 1, S, d) and its mask (B or 1, S) -> logits (B, L, vocabulary).

        `attention_mask` is not read: attention is causal, so no token sees the padding that follows an answer.
        """
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()
        x = self.run(self.embed(input_ids), None, self.remember(encoder_hidden_states), mask)  # (B, L, d)
        return DecoderOutput(self.project(x))

    def remember(self, memory: Tensor) -> list[KeysValues | None]:
        """Keys and values of the memory (B, S, d) by layer, the same for all answers; None without cross-attention."""
        crosses = (layer.cross_attention for layer in self.layers)
        return [None if attention is None else attention.keys_values(memory) for attention in crosses]

    def embed(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """input_ids (B, L) and their positions (L,), by default 0, 1, … -> (B, L, d)."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)  # (B, L, d)
        x = self.embedding_norm(x + self.token_type_embeddings.weight[0])
        return F.dropout(x, self.dropout, self.training)  # (B, L, d)

    def run(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Sequence[KeysValues | None],
        memory_mask: Tensor | None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Apply layers `start` to `stop` to x (B, L, d); `memory` is the result of `remember`.

        The mask (1, 1, L, L) is True where the row's token may attend to the column's; None: causal attention.
        """
        if mask is None:
            mask = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        for i in range(len(self.layers))[start:stop]:
            x = self.layers[i](x, memory[i], mask, memory_mask)  # (B, L, d)
        return x

    def project(self, x: Tensor) -> Tensor:
        """The output layer: states (..., d) -> logits (..., vocabulary)."""
        x = self.head_norm(F.gelu(self.head_transform(x)))
        return F.linear(x, self.word_embeddings.weight, self.head_bias)  # (..., vocabulary)

    def loss(self, answers: Tensor, answer_mask: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Conditional language-modelling loss per answer (B,): the sum of -log p over its tokens and [SEP].

        answers and mask (B, L): each answer begins with [CLS] and ends with [SEP]; padding does not count. memory (B or
        1, S, d) and mask (B or 1, S).
        """
        logits = self(answers[:, :-1], None, memory, memory_mask).logits  # (B, L-1, vocabulary)
        nll = F.cross_entropy(logits.float().transpose(1, 2), answers[:, 1:], reduction="none")  # (B, L-1)
        return (nll * answer_mask[:, 1:]).sum(1)  # (B, L-1) -> (B,)

    @torch.no_grad()
    def generate(self, memory: Tensor, memory_mask: Tensor | None, start: int, end: int, max_length: int) -> Tensor:
        """Greedy generation: token ids (B, at most max_length), `start` first; after its `end` an answer repeats it."""
        ids = torch.full((len(memory), 1), start, device=memory.device)  # (B, 1)
        remembered = self.remember(memory)
        while ids.shape[1] < max_length and not bool((ids[:, -1] == end).all()):
            x = self.run(self.embed(ids), None, remembered, memory_mask)  # (B, L, d)
            best = self.project(x[:, -1]).argmax(-1)  # (B,)
            best = torch.where(ids[:, -1] == end, end, best)  # (B,)
            ids = torch.cat([ids, best[:, None]], dim=1)  # (B, L) -> (B, L + 1)
        return ids
