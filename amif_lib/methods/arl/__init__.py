"""ARL: align, reason and learn with medical knowledge. Training and stored runs call these functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amif_lib.core.errors import InputError


def extras(spec: Any, studies: Sequence[Any], notes: dict[str, Any]) -> Any:
    """The knowledge graph and the entities that a run's reports name; adds a summary for `metrics.json` to `notes`."""
    from amif_lib.methods.arl.knowledge import gather_knowledge

    found = gather_knowledge(spec, studies)
    notes["knowledge"] = found.metrics
    return found


def build(spec: Any, tokenizer: Any, questions: Sequence[Any], notes: dict[str, Any], extras: Any = None) -> Any:
    """The module of the run's stage with its starting weights; a summary for `metrics.json` is added to `notes`."""
    from amif_lib.methods.arl.network import Backbone
    from amif_lib.methods.arl.pretraining import Pretraining
    from amif_lib.networks import pretrained

    if spec.stage == "finetune":
        return _fine_tuning(spec, tokenizer, questions, notes)
    arl = Backbone(spec.model, spec.knowledge, extras.graph, tokenizer)
    arl.entity_encoder.table.weight.data.copy_(extras.table)
    notes["weights"] = pretrained.load_towers(arl, spec.init.image, spec.init.text, tokenizer)
    return Pretraining(arl, spec.objective, spec.seed, spec.data.text_length)


def _fine_tuning(spec: Any, tokenizer: Any, questions: Sequence[Any], notes: dict[str, Any]) -> Any:
    from amif_lib.methods.amif.finetune import FineTuning  # the loss of an answer, the same for all methods
    from amif_lib.methods.arl.network import ARLForVQA, Backbone, stored_graph
    from amif_lib.networks import pretrained, tokenizers

    if spec.parent is None:
        raise InputError("a fine-tuning of ARL has no parent: name a pre-training, which stores the knowledge graph")
    folder, data = spec.parent.directory / "model", spec.data
    classes = None
    if spec.objective.answer_head == "classifier":  # the answers of all splits, as in the public code
        answers = sorted({answer for question in questions for answer in question.answers})
        classes = tokenizers.token_ids(tokenizer, answers, data.answer_length)
        notes["classes"] = len({tuple(each) for each in classes})
    arl = Backbone(spec.model, spec.knowledge, stored_graph(folder), tokenizer)
    model = ARLForVQA(arl, data.question_length, data.answer_length, classes)
    state = pretrained.read_state(folder)
    notes["weights"] = [pretrained.load_into(arl, state, f"run {spec.parent.run_id}")]
    if classes is None and spec.init.decoder != "random":
        notes["weights"].append(pretrained.load_decoder(model.decoder, spec.init.decoder, tokenizer))
    notes["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    return FineTuning(model)


def save(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write the weights of a stage's module, its configuration and the tokenizer to `folder`."""
    from amif_lib.networks import pretrained

    if hasattr(module, "model"):
        module.model.save_pretrained(folder)
    else:
        state = module.arl.state_dict() | module.image_align.state_dict(prefix="image_align.")
        pretrained.save(state, {"architecture": "ARL"} | module.arl.config(), folder)
        tokenizer.save_pretrained(folder)


def model(folder: Path) -> Any:
    """The fine-tuned network in `folder`, in evaluation mode on the CPU."""
    from amif_lib.methods.arl.network import ARLForVQA

    return ARLForVQA.from_pretrained(folder)


def zero_shot(run: Any, prompts: Any) -> Any:
    """Scores of images for labels: a function from tokens (n, p+1, d) to (n, K), or None without a trained alignment.

    ARL has no space that images and texts share; it aligns both to entities. A label's score is the mean logit of the
    entities that its affirming prompts name, or 0 if they name none. Denying prompts name the same entities, so they
    are not read.
    """
    if not run.spec.objective.weight_align:
        return None
    import torch

    from amif_lib.methods.arl.network import Backbone, stored_graph
    from amif_lib.methods.arl.pretraining import AlignmentHead, multi_hot
    from amif_lib.networks import pretrained, tokenizers

    spec, folder = run.spec, run.directory / "model"
    tokenizer, state = tokenizers.load(folder), pretrained.read_state(folder)
    with torch.random.fork_rng():
        arl = Backbone(spec.model, spec.knowledge, stored_graph(folder), tokenizer).eval()
        head = AlignmentHead(spec.model.width, spec.knowledge.dim)
    pretrained.load_into(arl, state, f"run {run.run_id}")
    head.load_state_dict({name: state[f"image_align.{name}"] for name in head.state_dict()})
    entities, named = arl.entity_encoder(), []  # (E, k)
    for affirming, _ in prompts:
        numbers, _ = arl.link(*tokenizers.encode(tokenizer, affirming, spec.data.text_length))  # (texts, e)
        named.append(multi_hot(numbers, len(entities)).sum(0))  # (E,)
    weights = torch.stack(named)  # (K, E)
    directions = weights / weights.sum(1, keepdim=True).clamp_min(1) @ entities  # (K, k)
    return lambda tokens: head(tokens[:, 0]) @ directions.T  # (n, k) @ (k, K) -> (n, K)
