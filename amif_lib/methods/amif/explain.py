"""Where the answering model looks for a word of the question: patch maps of attention, transport plan and gate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amif_lib.core.errors import InputError
from amif_lib.networks import tokenizers
from amif_lib.objectives import transport

if TYPE_CHECKING:
    from PIL import Image

    from amif_lib.methods.amif.network import AMiFForVQA


@torch.inference_mode()
def patch_maps(model: AMiFForVQA, image: Image.Image | str | Path, question: str, word: str) -> dict[str, Tensor]:
    """See `AMiFForVQA.explain`."""
    images, ids, mask = model.inputs(image, question)
    columns = word_positions(model.tokenizer, ids[0], word)
    return {name: values[0] for name, values in batch_maps(model, images, ids, mask, [columns]).items()}


@torch.inference_mode()
def batch_maps(
    model: AMiFForVQA, images: Tensor, ids: Tensor, mask: Tensor, columns: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """The maps of `AMiFForVQA.explain` for B questions at once, each (B, n, n).

    images (B, 3, H, W), ids and mask (B, t); `columns` holds each question's word as places among its tokens.
    """
    _, _, maps = model.encode_with_maps(images, ids, mask, return_weights=True)
    special = (model.tokenizer.cls_token_id, model.tokenizer.sep_token_id)
    cost = transport.cosine_cost(maps["image"][:, 1:], maps["text"])  # (B, p, t)
    plan = transport.ipot(cost, None, tokenizers.content_mask(ids, mask, special))  # (B, p, t)
    word = chosen(columns, ids)  # (B, t)
    out = {"transport_plan": of_word(plan, word)}  # (B, p)
    if maps["attentions"]:
        attention = maps["attentions"][-1][1].mean(1)  # text attends to image: (B, h, t, p+1) -> (B, t, p+1)
        on_patches = of_word(attention[..., 1:].transpose(1, 2), word)  # (B, p), [CLS] left out
        out["attention"] = on_patches / on_patches.sum(1, keepdim=True)
    side = model.spec.image_size // model.spec.patch_size
    if maps["gate"] is not None:
        out["gate"] = maps["gate"][:, 1 : side * side + 1].mean(-1)  # (B, p, d) -> (B, p)
    return {name: values.float().unflatten(1, (side, side)) for name, values in out.items()}


def of_word(on_tokens: Tensor, word: Tensor) -> Tensor:
    """What patches share with a word: (B, p, t) summed over the tokens of `word` (B, t) -> (B, p)."""
    return (on_tokens * word[:, None]).sum(-1)


def chosen(columns: Sequence[Sequence[int]], ids: Tensor) -> Tensor:
    """Places of each row's word as 1 and 0, float (B, t), on the device of the token ids (B, t)."""
    out = torch.zeros(ids.shape, device=ids.device)
    for row, places in zip(out, columns, strict=True):
        row[list(places)] = 1
    return out


def word_positions(tokenizer: Any, ids: Tensor, word: str) -> list[int]:
    """Places of a word's pieces among a text's tokens (t,): its first occurrence as whole words.

    Raises InputError when the word is not in the question (as far as the question length reaches).
    """
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    tokens = ids.tolist()
    known = bool(pieces) and tokenizer.unk_token_id not in pieces  # an unknown piece is like any other unknown one
    for start in range(len(tokens) if known else 0):
        end = start + len(pieces)
        goes_on = end < len(tokens) and tokenizer.convert_ids_to_tokens(tokens[end]).startswith("##")
        if tokens[start:end] == pieces and not goes_on:
            return list(range(start, end))
    raise InputError(f"explain: {word!r} is not a word of the question")
