"""Tiny runs and batches of ARL, of which those of MLIP are made too: seconds on one core."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch

from amif_lib.data import knowledge_graph
from amif_lib.experiments import rows as experiments
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.methods.arl.network import Backbone
from amif_lib.methods.arl.pretraining import Pretraining, multi_hot
from amif_lib.methods.arl.settings import KnowledgeSpec, ObjectiveSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.networks import tokenizers
from amif_lib.networks.sizes import ModelSpec
from tests import tiny

TEXTS = (
    "Large consolidation in the left lower zone. No pleural effusion.",
    "Nodule in the right upper zone of the lung; a second nodule.",
    "Mass in the frontal lobe of the brain with edema. No hemorrhage.",
    "Infarct in the occipital lobe. The ventricles are normal.",
    "No pneumothorax. Normal chest.",
    "Consolidation and nodule in the lower zone of the lung.",
    "Hemorrhage in the frontal lobe, large mass.",
    "Without abnormality.",
)


@cache
def language() -> tuple:
    """A tokenizer of the texts, and the graph that they give."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizers.train([text for text in TEXTS for _ in range(2)], 400, Path(folder))
    return tokenizer, knowledge_graph.read("reports", TEXTS * 3)


def pretraining(seed: int = 0, knowledge: dict | None = None, **objective: object) -> Pretraining:
    torch.manual_seed(seed)
    tokenizer, graph = language()
    model = ModelSpec(**(tiny.MODEL | {"fusion_layers": 2}))
    backbone = Backbone(model, KnowledgeSpec(**({"dim": 32} | (knowledge or {}))), graph, tokenizer)
    return Pretraining(backbone, ObjectiveSpec(**objective), seed=0, text_length=32)


def batch(n: int = 8, step: int = 0) -> PretrainingBatch:
    """n samples of random pixels and the texts above, every one its own group, text and label."""
    tokenizer, graph = language()
    ids, mask = tokenizers.encode(tokenizer, [TEXTS[i % len(TEXTS)] for i in range(n)], 32)
    g = torch.Generator().manual_seed(0)
    number = {entity: i for i, entity in enumerate(graph.entities)}
    named = [{number[mention.entity] for mention in graph.linker.link(TEXTS[i % len(TEXTS)])} for i in range(n)]
    entities = torch.cat([multi_hot(torch.tensor([sorted(own) or [-1]]), len(number)) for own in named])
    own = torch.arange(n)
    numbers = {"view_label": torch.zeros(n, 1, dtype=torch.long), "group": own, "text_key": own}
    views, view = torch.randn(n, 1, 3, 32, 32, generator=g), torch.zeros(n, dtype=torch.long)
    extras = {"entities": entities, "label": own.clone()}
    return PretrainingBatch(views, view, ids, mask, ids, **numbers, step=step, extras=extras)


def run(method: str = "arl", **changes) -> RunSpec:
    """A fine-tuning with the pre-training before it, on few samples."""
    data = {"pretrain": ["phantom_mimic_cxr"], "questions": "phantom_vqa_rad", "tokenizer_questions": []}
    data |= {"text_length": 48, "question_length": 24, "answer_length": 12, "max_studies": 48, "max_questions": 24}
    init = {"image": "random", "text": "random", "decoder": "random", "tokenizer": "trained"}
    shared = {"scale": "demo", "method": method, "model": tiny.MODEL, "data": data, "init": init}
    shared |= {"knowledge": {"dim": 32}, "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3}}
    shared = experiments.merge(shared, changes)
    pretrain = shared | {"stage": "pretrain"}
    return experiments.parse(shared | {"stage": "finetune", "parent": pretrain}, "tests")
