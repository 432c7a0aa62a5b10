"""Where the answering model looks for a word of the question: patch maps of attention, transport plan and gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amif_lib import tokenizers
from amif_lib.errors import InputError
from amif_lib.objectives import transport

if TYPE_CHECKING:
    from PIL import Image

    from amif_lib.model import AMiFForVQA


@torch.inference_mode()
def patch_maps(model: AMiFForVQA, image: Image.Image | str | Path, question: str, word: str) -> dict[str, Tensor]:
    """See `AMiFForVQA.explain`."""
    images, ids, mask = model.inputs(image, question)
    columns = word_positions(model, ids, word)
    _, _, maps = model.encode_with_maps(images, ids, mask, return_weights=True)
    side = model.spec.image_size // model.spec.patch_size
    special = (model.tokenizer.cls_token_id, model.tokenizer.sep_token_id)
    cost = transport.cosine_cost(maps["image"][:, 1:], maps["text"])  # (1, p, t)
    plan = transport.ipot(cost, None, tokenizers.content_mask(ids, mask, special))[0]  # (p, t)
    out = {"transport_plan": plan[:, columns].sum(1)}  # (p,)
    if maps["attentions"]:
        attention = maps["attentions"][-1][1][0].mean(0)  # text attends to image: (h, t, p+1) -> (t, p+1)
        on_patches = attention[columns, 1:].mean(0)  # (p,), [CLS] left out
        out["attention"] = on_patches / on_patches.sum()
    if maps["gate"] is not None:
        out["gate"] = maps["gate"][0, 1 : side * side + 1].mean(-1)  # (p, d) -> (p,)
    return {name: values.float().reshape(side, side) for name, values in out.items()}


def word_positions(model: AMiFForVQA, ids: Tensor, word: str) -> list[int]:
    """Places of a word's pieces among the question's tokens (1, t): its first occurrence as whole words.

    Raises InputError when the word is not in the question (as far as the question length reaches).
    """
    tokenizer = model.tokenizer
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    tokens = ids[0].tolist()
    known = bool(pieces) and tokenizer.unk_token_id not in pieces  # an unknown piece is like any other unknown one
    for start in range(len(tokens) if known else 0):
        end = start + len(pieces)
        goes_on = end < len(tokens) and tokenizer.convert_ids_to_tokens(tokens[end]).startswith("##")
        if tokens[start:end] == pieces and not goes_on:
            return list(range(start, end))
    raise InputError(f"explain: {word!r} is not a word of the question")
