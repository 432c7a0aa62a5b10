"""Where a trained network looks for a word: patch maps of attention, transport plan and gate; training reads none."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amif_lib.core.errors import InputError
from amif_lib.data import manifests, regions, store
from amif_lib.data.load import load_questions, load_studies
from amif_lib.data.records import Study
from amif_lib.methods.amif import labels
from amif_lib.methods.amif.network import AMiF, AMiFForVQA
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks import pixels, tokenizers
from amif_lib.networks.tokenizers import content_mask
from amif_lib.objectives import transport

HELD_OUT = "phantom_teacher"  # studies drawn apart: the soft labels' teacher is trained on them, no student ever is
SHOWN = ("vqa_rad", "vqa_med_2019")  # for stage 2 on real data: question sets whose images may be shown
MOST, EXAMPLES, BATCH = 150, 4, 50  # questions or reports per run, those with a picture, those in one pass
PICTURE = 96  # side of an example's picture, pixels


def contents(
    run: Any, drawn: Callable[[int], tuple[PretrainingBatch, list[Study]]] | None
) -> dict[str, Callable[[], Any]]:
    """What is stored of a run: file names, and functions that make their arrays or table, None where there is nothing.

    Stage 1: labels beside the student's probabilities on the first batch, `drawn(0)` (see `training.drawn`). Stage 2:
    the last step's negatives, and maps of words of reports that no student is trained on. Fine-tuning: of words of test
    questions. Regions to score maps by are known of generated data; of real data there are a few examples.
    """
    spec, made = run.spec, {}
    if spec.stage == "stage1":
        return {"soft_labels.npz": lambda: labels.soft_labels(run, *drawn(0))}
    if spec.stage == "stage2" and spec.objective.weight_hard_negatives > 0:
        made["hard_negatives.csv"] = lambda: labels.mined_negatives(run, *drawn(-1))
    sets = (spec.data.questions,) if spec.stage == "finetune" else spec.data.pretrain
    if spec.stage == "finetune" and spec.data.blank_images:
        print(f"finetune {run.run_id}: no maps: it is trained on blank images")
    elif spec.stage == "stage2" and HELD_OUT in sets:
        print(f"stage2 {run.run_id}: no maps: it is trained on {HELD_OUT}, whose regions would score it")
    elif not all(map(regions.known, sets)):
        made["example_maps.npz"] = lambda: example_maps(run)
    else:
        made["maps.npz"] = lambda: word_maps(run)
        if spec.stage == "stage2" or (spec.knowledge.source == "answers" and spec.knowledge.gate):
            name = f"untrained_{spec.stage}_{sets[0] if spec.stage == 'finetune' else HELD_OUT}.npz"
            made[name] = lambda: word_maps(run, trained=False)
    return made


@torch.inference_mode()
def look(
    network: AMiFForVQA | Stage2, images: Tensor, ids: Tensor, mask: Tensor, places: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Maps (B, n, n) of a word of each text, at `places` of its tokens: images (B, 3, H, W), ids and mask (B, t)."""
    if isinstance(network, Stage2):
        amif, gate, o = network.amif, None, network.objective
        image, text = amif.image_encoder(images), amif.text_encoder(ids, mask)  # (B, p+1, d), (B, t, d)
        *fused, attentions = amif.co_attention(image, text, None, mask, "image_text", True)
        image, text = fused if o.transport_on == "fused" else (image, text)
        _, plan = network.transport(image[:, 1:], text, content_mask(ids, mask, network.special_ids))  # (B, p, t)
    else:
        inside = network.encode_with_maps(images, ids, mask, return_weights=True)[2]
        special = (network.tokenizer.cls_token_id, network.tokenizer.sep_token_id)
        cost = transport.cosine_cost(inside["image"][:, 1:], inside["text"])  # (B, p, t)
        plan = transport.ipot(cost, None, content_mask(ids, mask, special))  # (B, p, t)
        attentions, gate = inside["attentions"], inside["gate"]
    word = torch.zeros(ids.shape, device=ids.device)  # (B, t): 1 on the word's pieces
    for row, own in zip(word, places, strict=True):
        row[list(own)] = 1
    out = {"transport_plan": (plan * word[:, None]).sum(-1)}  # (B, p, t) -> (B, p)
    if attentions:
        attention = attentions[-1][1].mean(1)  # of text on image, in the last layer: (B, h, t, p+1) -> (B, t, p+1)
        on_patches = (attention * word[..., None]).sum(1)[:, 1:]  # (B, p), [CLS] left out
        out["attention"] = on_patches / on_patches.sum(1, keepdim=True)
    if gate is not None:
        out["gate"] = gate[:, 1 : plan.shape[1] + 1].mean(-1)  # (B, p+1+t, d) -> (B, p)
    side = round(plan.shape[1] ** 0.5)
    return {name: values.float().unflatten(1, (side, side)) for name, values in out.items()}


def word_positions(tokenizer: Any, tokens: list[int], word: str) -> list[int]:
    """Places of a word's pieces among a text's tokens: its first occurrence as whole words, or InputError."""
    pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
    known = bool(pieces) and tokenizer.unk_token_id not in pieces  # an unknown piece is like any other unknown one
    for start in range(len(tokens) if known else 0):
        end = start + len(pieces)
        goes_on = end < len(tokens) and tokenizer.convert_ids_to_tokens(tokens[end]).startswith("##")
        if tokens[start:end] == pieces and not goes_on:
            return list(range(start, end))
    raise InputError(f"explain: {word!r} is not a word of the question")


def word_maps(run: Any, trained: bool = True) -> dict[str, Any] | None:
    """Maps of the first `MOST` words that name a finding which the image shows, in file order.

    Of test questions, or for a stage-2 run of reports of the held-out studies.
    """
    spec = run.spec
    if spec.stage == "stage2":
        studies = load_studies(HELD_OUT, stored_side=spec.model.stored_side)
        return _maps(run, HELD_OUT, regions.named_in_reports(HELD_OUT, studies), trained)
    name = spec.data.questions
    questions = load_questions(name, **spec.data.question_settings)
    tested = [question for question in questions if question.split == "test" and question.language == "en"]
    return _maps(run, name, regions.named_in_questions(name, tested), trained)


def example_maps(run: Any) -> dict[str, Any] | None:
    """Maps of `EXAMPLES` test questions of a set whose images may be shown, without regions.

    The set is a fine-tuning's own; for a stage-2 run, the first of `SHOWN` that it is kept apart from.
    """
    data, own = run.spec.data, run.spec.stage == "finetune"
    sets = [data.questions] if own else [name for name in SHOWN if name in data.decontaminate_against]
    for name in sets:
        if not (manifests.may_show(name, "images") and manifests.may_show(name, "texts")):
            continue
        try:
            questions = load_questions(name, **(data.question_settings if own else {}))
        except InputError:  # the set is not here
            continue
        return _maps(run, name, regions.named_answers(questions), located=False)
    print(f"{run.spec.stage} {run.run_id}: no maps: no test questions are here whose images and texts may be shown")
    return None


def _maps(
    run: Any, name: str, asked: Sequence[regions.Asked], trained: bool = True, located: bool = True
) -> dict[str, Any] | None:
    """Fields of `stored_maps.Maps` for the words that are read; `located`: the regions of their labels are known."""
    spec, tokenizer = run.spec, tokenizers.load(run.directory / "model")
    network, side = _network(run, tokenizer, trained), spec.model.image_size // spec.model.patch_size
    length = spec.data.text_length if name == HELD_OUT else spec.data.question_length
    found = []  # row, its tokens, and the word's places among them
    for row in asked:
        ids = tokenizer(row.read, truncation=True, max_length=length)["input_ids"]
        with contextlib.suppress(InputError):  # the word is cut off
            found.append((row, ids, word_positions(tokenizer, ids, row.word)))
        if len(found) == MOST and located:
            break
    if not located:
        found = [found[i] for i in first_of_each([row for row, *_ in found])]
    if not found:
        print(f"{spec.stage} {run.run_id}: no maps: no text of {name}, cut to its length, names what its image shows")
        return None
    rows, tokens, places = zip(*found, strict=True)
    pictures, parts = store.pictures([name], spec.model.stored_side), []
    for start in range(0, len(rows), BATCH):
        few = slice(start, start + BATCH)
        padded = tokenizer.pad({"input_ids": list(tokens[few])}, return_tensors="pt")
        images = torch.stack([pixels.to_tensor(pictures[row.image_id], spec.model.image_size) for row in rows[few]])
        parts.append(look(network, images, padded["input_ids"], padded["attention_mask"].bool(), places[few]))
    values = {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}  # (n, s, s)
    if not spec.knowledge.gate:
        values.pop("gate", None)
    values = {key: v if key == "gate" else v / v.sum((1, 2), keepdims=True) for key, v in values.items()}
    masks = [regions.mask(name, row.image_id, row.label) if located else np.zeros((side, side), bool) for row in rows]
    out = {"data_set": name, "values": values, "coverage": np.stack([regions.coverage(m, side) for m in masks])}
    out |= {f"{field}s": [getattr(row, field) for row in rows] for field in regions.Asked._fields[:5]}
    if not manifests.may_show(name, "texts"):
        out["words"] = out["texts"] = [""] * len(rows)
    if manifests.may_show(name, "images"):
        examples = first_of_each(rows)
        grey = [pictures[rows[i].image_id].convert("L").resize((PICTURE, PICTURE), Image.BICUBIC) for i in examples]
        outlines = [regions.coverage(masks[i], PICTURE) >= 0.5 for i in examples]
        out |= {"examples": examples, "pictures": np.stack(grey), "outlines": np.stack(outlines)}
    return out


def first_of_each(rows: Sequence[regions.Asked]) -> list[int]:
    """The rows shown as examples: in order, the first `EXAMPLES` of a label and an image not yet shown."""
    out: list[int] = []
    for number, row in enumerate(rows):
        shown = [rows[i] for i in out]
        if len(out) < EXAMPLES and all(row.label != r.label and row.image_id != r.image_id for r in shown):
            out.append(number)
    return out


def _network(run: Any, tokenizer: Any, trained: bool) -> AMiFForVQA | Stage2:
    """The stored network, or the same with random weights, in evaluation mode."""
    spec, folder, special = run.spec, run.directory / "model", (tokenizer.cls_token_id, tokenizer.sep_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if spec.stage == "stage2":
            amif = AMiF(spec.model)
            network = Stage2(amif, spec.objective, spec.seed, special)
            if trained:
                amif.load(folder)
        else:
            network = AMiFForVQA.from_pretrained(folder)
            if not trained:
                lengths = network.question_length, network.answer_length
                network = AMiFForVQA(spec.model, spec.knowledge, network.knowledge_ids, tokenizer, *lengths)
    return network.eval()
