"""AMiF: alignment, mining and fusion. Training and stored runs call these functions, which import torch when called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amif_lib.core.errors import InputError


def extras(spec: Any, studies: Sequence[Any], notes: dict[str, Any]) -> Any:
    """The teacher's `Embeddings` of a run's studies, or None; a summary for `metrics.json` is added to `notes`."""
    from amif_lib.methods.amif import settings, teacher

    if not (teacher_id := settings.teacher_id(spec)):
        return None
    found = teacher.embeddings(spec, studies)
    notes["teacher"] = found.metrics | {"id": teacher_id}
    return found


def build(spec: Any, tokenizer: Any, questions: Sequence[Any], notes: dict[str, Any], extras: Any = None) -> Any:
    """The module of the run's stage with its starting weights; a summary for `metrics.json` is added to `notes`.

    Raises InputError if the run lacks a loss, a parent or a teacher that its stage needs, or if weights do not fit.
    """
    from amif_lib.methods.amif.network import AMiF
    from amif_lib.methods.amif.stage1 import Stage1
    from amif_lib.methods.amif.stage2 import Stage2

    if spec.stage == "finetune":
        return _fine_tuning(spec, tokenizer, questions, notes)
    objective, special = spec.objective, (tokenizer.cls_token_id, tokenizer.sep_token_id)
    mines = spec.stage == "stage2" and objective.weight_hard_negatives > 0
    if spec.stage == "stage2" and spec.parent is None:
        raise InputError("stage 2 has no parent: give the run a `parent`, the stage-1 run that it continues")
    if objective.labels == "soft" and spec.teacher is None and (spec.stage == "stage1" or mines):
        raise InputError("objective.labels: 'soft' needs a teacher; give the run a `teacher`, or set labels: one_hot")
    if mines:  # point 19
        of_teacher = "soft labels H" if objective.labels == "soft" else "teacher's Q"
        notes["negatives_drawn_from"] = "student's P" if spec.teacher is None else of_teacher
    amif = AMiF(spec.model)
    notes["weights"] = _load(amif, spec, tokenizer)
    return Stage1(amif, objective) if spec.stage == "stage1" else Stage2(amif, objective, spec.seed, special)


def _fine_tuning(spec: Any, tokenizer: Any, questions: Sequence[Any], notes: dict[str, Any]) -> Any:
    from amif_lib.methods.amif import knowledge
    from amif_lib.methods.amif.finetune import fine_tuning
    from amif_lib.methods.amif.network import AMiFForVQA

    source = spec.knowledge.source
    texts = knowledge.texts(source, [question for question in questions if question.split == "train"])  # point 33
    limit = min(spec.knowledge.max_tokens, spec.model.text_positions)
    ids, left_out = knowledge.select(texts, tokenizer, limit, words=source == "questions")  # (M,)
    model = AMiFForVQA(spec.model, spec.knowledge, ids, tokenizer, spec.data.question_length, spec.data.answer_length)
    notes["weights"] = _load(model.amif, spec, tokenizer)
    notes |= {"knowledge_tokens": len(ids), "knowledge_texts": len(set(texts)), "knowledge_texts_left_out": left_out}
    return fine_tuning(model, spec, tokenizer, notes)


def _load(amif: Any, spec: Any, tokenizer: Any) -> list[str]:
    """Starting weights: the parent run's, or what `init` names. Returns a line for each source."""
    from amif_lib.methods.amif import teacher
    from amif_lib.networks import pretrained

    if spec.parent is not None:
        state = pretrained.read_state(spec.parent.directory / "model")
        report = pretrained.load_into(amif, state, f"run {spec.parent.run_id}")
        if spec.parent.stage == "stage1":  # these two were not trained: like all that is random, they learn faster
            for name, parameter in amif.named_parameters():
                if name.startswith(("co_attention.", "pair_head.")):
                    del parameter.loaded
        return [report]
    image, text = spec.init.image, spec.init.text
    if spec.starts_from_teacher:
        image_tower, text_tower = teacher.towers(spec)
        image, text = image_tower if image == "teacher" else image, text_tower if text == "teacher" else text
    return pretrained.load_towers(amif, image, text, tokenizer)


def save(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write the weights of a stage's module, its configuration and the tokenizer to `folder`."""
    if hasattr(module, "model"):
        module.model.save_pretrained(folder)
    else:
        module.amif.save(folder)
        tokenizer.save_pretrained(folder)


def model(folder: Path) -> Any:
    """The fine-tuned network in `folder`, in evaluation mode on the CPU."""
    from amif_lib.methods.amif.network import AMiFForVQA

    return AMiFForVQA.from_pretrained(folder)


def zero_shot(run: Any, labels: Any) -> Any:
    """Scores of images for labels, given as `prompts.Prompts`, in the space of Eq. 1: see `prompts.scorer`."""
    from amif_lib.methods import prompts
    from amif_lib.methods.amif.network import AMiF

    amif = AMiF.from_pretrained(run.directory / "model").eval()
    return prompts.scorer(
        run,
        labels,
        lambda tokens: amif.image_projection(tokens[:, 0]),
        lambda ids, mask: amif.text_projection(amif.text_encoder(ids, mask)[:, 0]),
    )


def maps(run: Any, *inputs: Any) -> dict[str, Any]:
    """Patch maps (B, n, n) of one word per text, by a run's stored network; inputs as for `AMiF.word_maps`."""
    from amif_lib.methods.amif.network import AMiF, AMiFForVQA

    network = AMiFForVQA if run.spec.stage == "finetune" else AMiF
    return network.from_pretrained(run.directory / "model").word_maps(*inputs)
