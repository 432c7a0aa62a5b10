"""What ARL's pre-training reads besides image and text: which entities each report names, and its findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amif_lib.data import knowledge_graph
from amif_lib.data.knowledge_graph import KnowledgeGraph
from amif_lib.data.records import Study, StudyImage
from amif_lib.methods import entities


@dataclass
class Knowledge:
    """The knowledge graph of a run, TransE's vectors of its E entities, and what each study's report names."""

    graph: KnowledgeGraph
    table: Tensor  # (E, k)
    entities: dict[str, Tensor]  # by study: which entities its report names, (E,) of 0 and 1
    labels: dict[str, int]  # by study: a number that stands for the set of findings that its report affirms
    folds: dict[str, int]  # by study: 0 for all, since a batch may mix any studies
    metrics: dict[str, Any]

    def of(self, study: Study, shown: Sequence[StudyImage]) -> dict[str, Tensor]:
        """What a batch needs of a study: `entities` (E,) and `label`, a scalar."""
        label = torch.tensor(self.labels[study.study_id])
        return {"entities": self.entities[study.study_id], "label": label}


def gather_knowledge(spec: Any, studies: Sequence[Study]) -> Knowledge:
    """Read the graph that `knowledge.source` names, and find the entities in every report.

    Raises InputError if the knowledge cannot be used (`knowledge_graph.read`).
    """
    texts = [study.text for study in studies]
    graph, table, metrics = entities.read_graph(spec.knowledge.source, texts, spec.knowledge.dim, spec.seed)
    numbers = {entity: number for number, entity in enumerate(graph.entities)}
    named, found = {}, {}
    for study in studies:
        mentions = graph.linker.link(study.text)
        if spec.objective.negated_entities == "dropped":
            mentions = knowledge_graph.affirmed(study.text, mentions)
        own = sorted({numbers[mention.entity] for mention in mentions})
        named[study.study_id] = torch.zeros(len(numbers)).index_fill(0, torch.tensor(own, dtype=torch.long), 1.0)
        found[study.study_id] = knowledge_graph.findings(study.text)
    known = {each: number for number, each in enumerate(sorted(set(found.values())))}
    labels = {name: known[each] for name, each in found.items()}
    metrics |= {"entities_of_a_report": float(torch.stack(list(named.values())).sum(1).mean()), "labels": len(known)}
    return Knowledge(graph, table, named, labels, dict.fromkeys(named, 0), metrics)
