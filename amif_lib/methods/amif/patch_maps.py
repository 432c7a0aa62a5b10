"""Maps over an image's patches: where a network looks for a word of the text (not used in training).

Shapes: B samples, p patches (+1 [CLS]) on a grid of n x n, t text tokens, h heads, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amif_lib.core.errors import InputError
from amif_lib.objectives import transport


def patch_maps(
    image: Tensor,
    text: Tensor,
    real: Tensor,
    places: Sequence[Sequence[int]],
    attentions: list[list[Tensor]],
    gate: Tensor | None = None,
) -> dict[str, Tensor]:
    """Maps (B, n, n) of one word per text, by name, from the result of co-attention with `return_weights`.

    `attention`: from the word to the patches in the last layer, mean over heads, sum 1; absent without layers.
    `transport_plan`: mass moved between patch and word (Eq. 9). `gate`: of the patch, mean over channels; or absent.

    image (B, p+1, d) and text (B, t, d); real (B, t): words, without [CLS], [SEP] and padding; places: positions of the
    word's tokens in each text; attentions: for each layer (B, h, p+1, t) and (B, h, t, p+1); gate (B, p+1+t, d).
    """
    word = torch.zeros(real.shape, device=real.device)  # (B, t): 1 on the word's pieces
    for row, own in zip(word, places, strict=True):
        row[list(own)] = 1
    cost = transport.cosine_cost(image[:, 1:], text)  # (B, p, t)
    plan = transport.ipot(cost, None, real)  # (B, p, t)
    out = {"transport_plan": (plan * word[:, None]).sum(-1)}  # (B, p)
    if attentions:
        attention = attentions[-1][1].mean(1)  # text on image: (B, h, t, p+1) -> (B, t, p+1)
        on_patches = (attention * word[..., None]).sum(1)[:, 1:]  # (B, p), [CLS] left out
        out["attention"] = on_patches / on_patches.sum(1, keepdim=True)
    if gate is not None:
        out["gate"] = gate[:, 1 : image.shape[1]].mean(-1)  # (B, p+1+t, d) -> (B, p)
    side = round(plan.shape[1] ** 0.5)
    return {name: values.float().unflatten(1, (side, side)) for name, values in out.items()}  # (B, p) -> (B, n, n)


def word_positions(tokenizer: Any, tokens: list[int], word: str) -> list[int]:
    """Positions of a word's tokens in a text: its first occurrence as a whole word. InputError if there is none."""
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    known = bool(pieces) and tokenizer.unk_token_id not in pieces  # [UNK] would match any other unknown word
    for start in range(len(tokens) if known else 0):
        end = start + len(pieces)
        goes_on = end < len(tokens) and tokenizer.convert_ids_to_tokens(tokens[end]).startswith("##")
        if tokens[start:end] == pieces and not goes_on:
            return list(range(start, end))
    raise InputError(f"{word!r} is not a word of the text, or is unknown to the tokenizer; give another one")
