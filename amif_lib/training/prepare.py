"""What a run needs before its first step: data, tokenizer, network. Bad settings and data are reported here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from amif_lib import methods
from amif_lib.core.errors import InputError
from amif_lib.data import store
from amif_lib.data.load import load_questions, pretraining_studies
from amif_lib.data.records import Question
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.experiments.stored import is_finished
from amif_lib.networks import tokenizers
from amif_lib.objectives.distributed import gather_objects, rank, world_size
from amif_lib.training.batches import PretrainingData, QuestionData, seed_of
from amif_lib.training.predict import candidate_answers

NOTEBOOKS = {"stage1": "notebook 03_stage1_global_alignment", "stage2": "notebook 04_stage2_local_alignment_and_mining"}


@dataclass
class Prepared:
    """All that the loop needs: the module to train, its data, and notes for `metrics.json`."""

    module: nn.Module  # forward(batch) -> named losses; `weights`: how they add up
    tokenizer: Any
    data: PretrainingData | QuestionData
    notes: dict[str, Any]  # go into metrics.json
    questions: list[Question] = field(default_factory=list)  # of all splits


def prepare(spec: RunSpec) -> Prepared:
    """Read a run's data, make its tokenizer and its network with starting weights. Raises InputError for bad input."""
    if spec.parent is not None and not is_finished(spec.parent):
        remedy = f"run {NOTEBOOKS.get(spec.parent.stage, 'its training')} first, or `make reproduce SCALE={spec.scale}`"
        raise InputError(f"parent run {spec.parent.run_id} ({spec.parent.stage}) is not finished; {remedy}")
    size = spec.train.batch_size
    if spec.stage != "finetune" and size % world_size():
        raise InputError(f"train.batch_size: {size} is not a multiple of {world_size()} processes; change one of them")
    method, notes = methods.load(spec.method), {}
    studies = pretraining_studies(spec.data, spec.model.stored_side) if spec.reads_studies else []
    questions = read_questions(spec) if spec.stage == "finetune" else []
    tokenizer = get_tokenizer(spec, [study.text for study in studies])
    extras = method.extras(spec, studies, notes) if spec.stage != "finetune" else None
    torch.manual_seed(seed_of(spec, 0))
    module = method.build(spec, tokenizer, questions, notes, extras)
    if not module.weights:
        remedy = "make one positive, or let the row's `pretraining` leave the stage out"
        raise InputError(f"objective: all weights of {spec.stage} are 0, so it has no loss; {remedy}")
    if spec.stage == "finetune":
        notes |= about_questions(spec, tokenizer, questions)
        training = [question for question in questions if question.split == "train"]
        data = QuestionData(training, spec, tokenizer, augment=spec.data.augment_questions)
    else:
        notes |= {"studies": len(studies), "images": sum(len(study.images) for study in studies)}
        data = PretrainingData(studies, spec, tokenizer, extras)
    return Prepared(module, tokenizer, data, notes, questions)


def read_questions(spec: RunSpec) -> list[Question]:
    """The questions of all splits whose images could be stored, at most `data.max_questions` of each split."""
    data = spec.data
    questions = load_questions(data.questions, **data.question_settings)
    questions = store.usable(data.questions, spec.model.stored_side, questions)
    of_split = [[q for q in questions if q.split == split] for split in ("train", "val", "test")]
    return [question for part in of_split for question in part[: data.max_questions or None]]


def get_tokenizer(spec: RunSpec, report_texts: list[str]) -> Any:
    """The parent's tokenizer, a checkpoint's, or one fitted on training texts (never on test questions or answers)."""
    if spec.parent is not None or is_finished(spec):
        return tokenizers.load((spec.parent or spec).directory / "model")
    tokenizer = None if spec.init.tokenizer == "trained" else tokenizers.load(spec.init.tokenizer)
    if spec.fits_tokenizer:
        texts, folder = list(report_texts), spec.directory / "model"
        for name in spec.data.tokenizer_questions:
            # always the default training file, whichever the run trains on, so that a table's rows share a vocabulary
            texts += [text for q in load_questions(name) if q.split == "train" for text in (q.question, q.answer)]
        if rank() == 0 and tokenizer is None:
            tokenizers.train(texts, spec.model.vocab_size, folder)
        elif rank() == 0:
            tokenizers.prune(tokenizer, texts, folder)
        gather_objects(None)  # wait until it is written
        tokenizer = tokenizers.load(folder)
    if len(tokenizer) > spec.model.vocab_size:
        what = f"model.vocab_size: {spec.model.vocab_size} is smaller than the {len(tokenizer)} tokens"
        raise InputError(f"{what} of {spec.init.tokenizer}; raise it")
    return tokenizer


def about_questions(spec: RunSpec, tokenizer: Any, questions: list[Question]) -> dict[str, Any]:
    """Counts for `metrics.json`: questions, candidates, texts cut at the maximal length, candidates of equal tokens."""
    out: dict[str, Any] = {}
    for split, name in (("train", "training"), ("test", "test")):
        own = [question for question in questions if question.split == split]
        out[f"{name}_questions"] = len(own)
        texts = {"questions": [q.question for q in own], "answers": [q.answer for q in own]}
        for kind, length in (("questions", spec.data.question_length), ("answers", spec.data.answer_length)):
            out[f"{name}_{kind}_cut"] = sum(len(ids) > length for ids in tokenizers.token_ids(tokenizer, texts[kind]))
    candidates = candidate_answers(questions)
    read = tokenizers.token_ids(tokenizer, candidates, spec.data.answer_length)
    alike = len(read) - len(set(map(tuple, read)))  # equal tokens: ranking cannot tell them apart
    return out | {"candidates": len(candidates), "candidates_read_alike": alike}
