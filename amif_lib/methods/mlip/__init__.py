"""MLIP: contrastive learning at three levels, divergence encoders. Training and stored runs call these functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def extras(spec: Any, studies: Sequence[Any], notes: dict[str, Any]) -> Any:
    """The knowledge graph of a run and vectors of its entities; adds a summary for `metrics.json` to `notes`."""
    from amif_lib.methods.entities import read_graph
    from amif_lib.methods.mlip.pretraining import Knowledge

    texts = [study.text for study in studies]
    graph, table, notes["knowledge"] = read_graph(spec.knowledge.source, texts, spec.knowledge.dim, spec.seed)
    return Knowledge(graph, table, {study.study_id: 0 for study in studies})


def build(spec: Any, tokenizer: Any, questions: Sequence[Any], notes: dict[str, Any], extras: Any = None) -> Any:
    """The module of the run's stage with its starting weights; a summary for `metrics.json` is added to `notes`."""
    from amif_lib.methods.mlip.network import MLIP
    from amif_lib.methods.mlip.pretraining import Pretraining
    from amif_lib.networks import pretrained

    if spec.stage == "finetune":
        return _fine_tuning(spec, tokenizer, notes)
    mlip = MLIP(spec.model)
    notes["weights"] = pretrained.load_towers(mlip, spec.init.image, spec.init.text, tokenizer)
    notes["prototypes"] = spec.objective.prototypes or max(2, spec.train.batch_size // 2)
    return Pretraining(mlip, spec.objective, extras, tokenizer, notes["prototypes"], spec.seed)


def _fine_tuning(spec: Any, tokenizer: Any, notes: dict[str, Any]) -> Any:
    from amif_lib.methods.amif.finetune import fine_tuning
    from amif_lib.methods.mlip.network import MLIPForVQA
    from amif_lib.networks import pretrained

    model = MLIPForVQA(spec.model, tokenizer, spec.data.question_length, spec.data.answer_length)
    if spec.parent is None:
        notes["weights"] = pretrained.load_towers(model.mlip, spec.init.image, spec.init.text, tokenizer)
    else:
        state = pretrained.read_state(spec.parent.directory / "model")
        notes["weights"] = [pretrained.load_into(model.mlip, state, f"run {spec.parent.run_id}")]
    return fine_tuning(model, spec, tokenizer, notes)


def save(module: Any, tokenizer: Any, folder: Path) -> None:
    """Write the weights of a stage's module, its configuration and the tokenizer to `folder`."""
    if hasattr(module, "model"):
        module.model.save_pretrained(folder)
    else:
        module.mlip.save(folder)
        tokenizer.save_pretrained(folder)


def model(folder: Path) -> Any:
    """The fine-tuned network in `folder`, in evaluation mode on the CPU."""
    from amif_lib.methods.mlip.network import MLIPForVQA

    return MLIPForVQA.from_pretrained(folder)


def zero_shot(run: Any, labels: Any) -> Any:
    """Scores of images for labels, given as `prompts.Prompts`, by v* and t* of Eq. 3: see `prompts.scorer`."""
    import torch

    from amif_lib.methods import prompts
    from amif_lib.methods.mlip.network import MLIP
    from amif_lib.methods.mlip.pretraining import unit
    from amif_lib.networks import pretrained

    with torch.random.fork_rng():
        mlip = MLIP(run.spec.model).eval()
    pretrained.load_into(mlip, pretrained.read_state(run.directory / "model"), f"run {run.run_id}")
    return prompts.scorer(
        run,
        labels,
        lambda tokens: unit(mlip.image_projection(tokens)[0][:, 0]),
        lambda ids, mask: unit(mlip.text_projection(mlip.text_encoder(ids, mask), mask)[0][:, 0]),
    )
