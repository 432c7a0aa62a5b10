"""What a run needs before its first step: data, tokenizer, starting weights. Errors a user can mend are raised here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from amif_lib.core.errors import InputError
from amif_lib.data import decontaminate, store
from amif_lib.data.load import load_questions, pretraining_studies
from amif_lib.experiments import stored as results
from amif_lib.experiments.rows import RunSpec
from amif_lib.methods.amif import knowledge
from amif_lib.methods.amif import teacher as teachers
from amif_lib.methods.amif.finetune import FineTuning
from amif_lib.methods.amif.network import AMiF, AMiFForVQA
from amif_lib.methods.amif.settings import teacher_id
from amif_lib.methods.amif.stage1 import Stage1
from amif_lib.methods.amif.stage2 import Stage2
from amif_lib.networks import pretrained, tokenizers
from amif_lib.objectives.distributed import gather_objects, rank, world_size
from amif_lib.training.batches import PretrainingData, QuestionData


@dataclass
class Prepared:
    """All that the loop needs: what to train, on what, and what to write about it."""

    module: nn.Module
    tokenizer: Any
    data: PretrainingData | QuestionData
    folds: Sequence[int] | None
    notes: dict[str, Any]  # goes into metrics.json
    questions: list | None = None


def prepare(spec: RunSpec) -> Prepared:
    """Read data, tokenizer and starting weights of a run; every error a user can mend is raised here, before training."""
    if spec.parent is not None and not results.is_finished(spec.parent):
        raise InputError(
            f"parent run {spec.parent.run_id} ({spec.parent.stage}) is not finished; run it first, e.g. `make reproduce SCALE={spec.scale}`"
        )
    torch.manual_seed(spec.seed)
    return prepare_questions(spec) if spec.stage == "finetune" else prepare_pretraining(spec)


def prepare_pretraining(spec: RunSpec) -> Prepared:
    studies = pretraining_studies(spec.data, spec.model.stored_side)
    notes: dict[str, Any] = {"studies": len(studies), "images": sum(len(s.images) for s in studies)}
    if skipped := decontaminate.missing(spec.data.decontaminate_against):  # decontaminate_absent: skip
        notes["not_kept_out"] = skipped
    embeddings, o = None, spec.objective
    mines = spec.stage == "stage2" and o.weight_hard_negatives > 0
    if spec.teacher is not None:
        embeddings = teachers.embeddings(spec, studies)
        notes["teacher"] = embeddings.metrics | {"id": teacher_id(spec)}
    elif o.labels == "soft" and (spec.stage == "stage1" or o.weight_global > 0 or mines):
        raise InputError(
            "objective.labels: 'soft' needs a teacher; give the run a `teacher` section or set labels: one_hot"
        )
    if mines:
        of_teacher = "soft labels H" if o.labels == "soft" else "teacher's Q"
        notes["negatives_drawn_from"] = "student's P" if embeddings is None else of_teacher
    if spec.train.batch_size % world_size():
        raise InputError(
            f"train.batch_size: {spec.train.batch_size} is not a multiple of {world_size()} processes; change one of them"
        )
    tokenizer = get_tokenizer(spec, [s.text for s in studies])
    torch.manual_seed(spec.seed)
    amif = AMiF(spec.model)
    notes["weights"] = [str(report) for report in load_encoders(amif, spec, tokenizer)]
    if spec.stage == "stage2" and spec.parent is None:
        raise InputError("stage 2 has no parent: give the run a `parent`, the stage-1 run that it continues")
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    module = Stage1(amif, o) if spec.stage == "stage1" else Stage2(amif, o, spec.seed, special)
    data = PretrainingData(studies, spec, tokenizer, embeddings)
    return Prepared(module, tokenizer, data, data.folds, notes)


def prepare_questions(spec: RunSpec) -> Prepared:
    questions = load_questions(spec.data.questions, **spec.data.question_settings)
    questions = store.usable(spec.data.questions, spec.model.stored_side, questions)
    if spec.data.max_questions:
        questions = [
            q
            for split in ("train", "val", "test")
            for q in [q for q in questions if q.split == split][: spec.data.max_questions]
        ]
    training = [q for q in questions if q.split == "train"]
    pretraining_texts = (
        [s.text for s in pretraining_studies(spec.data, spec.model.stored_side)] if spec.fits_tokenizer else []
    )
    tokenizer = get_tokenizer(spec, pretraining_texts)
    texts = knowledge.texts(spec.knowledge.source, training)
    limit = min(spec.knowledge.max_tokens, spec.model.text_positions)
    ids, dropped = knowledge.select(texts, tokenizer, limit, words=spec.knowledge.source == "questions")
    torch.manual_seed(spec.seed)
    model = AMiFForVQA(spec.model, spec.knowledge, ids, tokenizer, spec.data.question_length, spec.data.answer_length)
    reports = load_encoders(model.amif, spec, tokenizer)
    if spec.init.decoder != "random":
        reports.append(pretrained.load_decoder(model.decoder, spec.init.decoder, tokenizer))
    whole = tokenizer([q.answer for q in training])["input_ids"]
    long = sum(len(ids) > spec.data.answer_length for ids in whole)
    notes = {
        "training_questions": len(training),
        "test_questions": sum(q.split == "test" for q in questions),
        "knowledge_tokens": len(ids),
        "knowledge_texts": len(set(texts)),
        "knowledge_texts_left_out": dropped,
        "answers_cut": long,
        "weights": [str(r) for r in reports],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    data = QuestionData(training, spec, tokenizer, augment=spec.data.augment_questions)
    return Prepared(FineTuning(model), tokenizer, data, None, notes, questions)


def get_tokenizer(spec: RunSpec, pretraining_texts: list[str]) -> Any:
    """The parent's tokenizer, a checkpoint's, or one fitted on training texts (test questions and answers never seen)."""
    if spec.parent is not None:
        return tokenizers.load(spec.parent.directory / "model")
    if spec.init.tokenizer != "trained" and spec.init.vocabulary == "whole":
        tokenizer = tokenizers.load(spec.init.tokenizer)
    else:
        texts = list(pretraining_texts)
        for name in spec.data.tokenizer_questions:
            # the official training file, whichever the run trains on, so that all rows of a table share a vocabulary
            texts += [text for q in load_questions(name) if q.split == "train" for text in (q.question, q.answer)]
        folder = spec.directory / "model"
        if rank() == 0 and spec.init.tokenizer == "trained":
            tokenizers.train(texts, spec.model.vocab_size, folder)
        elif rank() == 0:
            tokenizers.prune(tokenizers.load(spec.init.tokenizer), texts, folder)
        gather_objects(None)  # wait until it is written
        tokenizer = tokenizers.load(folder)
    if len(tokenizer) > spec.model.vocab_size:
        raise InputError(
            f"model.vocab_size: {spec.model.vocab_size} is smaller than the {len(tokenizer)} tokens of {spec.init.tokenizer}; raise it"
        )
    return tokenizer


def load_encoders(amif: AMiF, spec: RunSpec, tokenizer: Any) -> list[pretrained.LoadReport]:
    """Starting weights: the parent run's, or what `init` names; co-attention from elsewhere before it is first trained."""
    reports = []
    if spec.parent is not None:
        state = pretrained.read_state(spec.parent.directory / "model")
        reports.append(pretrained.load_into(amif, state, f"run {spec.parent.run_id}"))
    else:
        teacher = teachers.towers_source(spec) if spec.starts_from_teacher else ""
        image, text = (teacher if name == "teacher" else name for name in (spec.init.image, spec.init.text))
        if image != "random":
            reports.append(amif.image_encoder.load(image))
        if text != "random":
            reports.append(amif.text_encoder.load(text, tokenizer))
    return reports
