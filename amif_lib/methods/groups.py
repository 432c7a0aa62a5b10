"""Groups of settings, as dotted names, that only some stages of every method read; used by `settings.not_read`."""

from __future__ import annotations


def names(section: str, listed: str) -> set[str]:
    """Dotted names of a section's settings: `objective` and `a b` give `objective.a` and `objective.b`."""
    return {f"{section}.{name}" for name in listed.split()}


STARTING = names("init", "image text tokenizer vocabulary") | {"data.tokenizer_questions"}  # runs without a parent
STUDIES = names("data", "pretrain decontaminate_against repeated_articles max_studies")
ANSWERING = names("data", "questions training_file language augment_questions max_questions blank_images")
ANSWERING |= names("data", "question_length answer_length") | {"init.decoder"}
ANSWERING |= names("model", "decoder_layers decoder_cross_layers")  # fine-tuning
