"""Which settings determine a run's result: those that its stage reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from amif_lib.experiments.run_spec import RunSpec, TeacherSpec

DECODER_FIELDS = (
    "gate_input",
    "gated_norm",
    "decoder_layers",
    "decoder_cross_layers",
    "decoder_cross_placement",
    "decoder_output",
)
QUESTION_FIELDS = (
    "questions",
    "training_file",
    "language",
    "allow_cross_language",
    "question_length",
    "answer_length",
    "augment_questions",
    "blank_images",
    "max_questions",
)
SAMPLE_FIELDS = ("merge", "text_length", "augment_single_view", "augment_multi_view")
STUDY_FIELDS = (
    "pretrain",
    "report_sections",
    "medicat_figures",
    "decontaminate_against",
    "decontaminate_absent",
    "repeated_articles",
    "max_studies",
    "single_view_studies",
)
GLOBAL_FIELDS = (
    "global_inter",
    "global_intra",
    "labels",
    "temperature",
    "learn_temperature",
    "teacher_temperature",
    "positive_weight",
    "renormalise_labels",
    "text_text_diagonal",
    "text_text_second",
    "inter_view",
    "queue",
)


# Settings that joined later: at their default they leave an older run's identity as it was.
LATER = {
    "model": ("image_form",),
    "teacher": ("noise", "towers", "heads"),
    "objective": ("transport_tolerance", "image_image_views"),
}


def _without_defaults(section: str, model: BaseModel, content: dict[str, Any]) -> dict[str, Any]:
    fields = type(model).model_fields
    defaults = {name: fields[name].default for name in LATER[section]}
    return {name: value for name, value in content.items() if name not in defaults or value != defaults[name]}


def teacher_read(teacher: TeacherSpec, *exclude: str) -> dict[str, Any]:
    """The teacher's settings as they enter an identity."""
    return _without_defaults("teacher", teacher, teacher.model_dump(mode="json", exclude=set(exclude)))


def settings_read(spec: RunSpec) -> dict[str, Any]:
    """The run's own settings without those that its stage does not read, and without label and scale name."""
    content = spec.model_dump(mode="json", exclude={"label", "scale", "parent"})

    def leave_out(section: str, *names: str) -> None:
        for name in names:
            content[section].pop(name)

    content["model"] = _without_defaults("model", spec.model, content["model"])
    if spec.teacher:
        content["teacher"] = teacher_read(spec.teacher)
    leave_out("data", "max_missing_images", "most_bad_images")  # whether a run may start, not what comes out
    if spec.stage == "finetune":
        content.pop("objective")
        if spec.starts_from_teacher:  # its towers; what it sees of the student's images is not read
            content["teacher"].pop("views")
        else:
            content.pop("teacher")
        leave_out("data", *SAMPLE_FIELDS)
        if spec.trains_towers:
            pass  # it reads texts of `teacher.data`, and embeds the studies
        elif spec.parent or (spec.init.tokenizer != "trained" and spec.init.vocabulary == "whole"):
            leave_out("data", *STUDY_FIELDS)  # else the tokenizer reads the texts
        if spec.knowledge.source == "none":
            content["knowledge"] = {"source": "none"}
    else:
        content.pop("knowledge")
        leave_out("data", *QUESTION_FIELDS)
        leave_out("model", *DECODER_FIELDS)
        leave_out("init", "decoder")
        leave_out("train", "epoch_choice")
    if spec.stage == "stage1":
        kept = (*GLOBAL_FIELDS, *(("token_drop",) if spec.objective.copies_texts else ()))
        content["objective"] = {name: content["objective"][name] for name in kept}
    elif spec.stage == "stage2":
        content["objective"] = _without_defaults("objective", spec.objective, content["objective"])
    if spec.parent:  # weights come from there
        leave_out("init", "image", "text")
    if not spec.loads_co_attention:
        leave_out("init", "co_attention")
    return content
