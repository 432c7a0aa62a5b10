"""Tiny runs and batches of MLIP: seconds on one core."""

from __future__ import annotations

import torch

from amif_lib.experiments.run_spec import RunSpec
from amif_lib.methods.batch import PretrainingBatch
from amif_lib.methods.mlip.network import MLIP
from amif_lib.methods.mlip.pretraining import Knowledge, Pretraining
from amif_lib.methods.mlip.settings import ObjectiveSpec
from amif_lib.networks.sizes import ModelSpec
from tests import tiny, tiny_arl

LOSSES = ("global", "local", "category", "itm", "swap")


def pretraining(seed: int = 0, mlip: MLIP | None = None, **objective: object) -> Pretraining:
    torch.manual_seed(seed)
    tokenizer, graph = tiny_arl.language()
    knowledge = Knowledge(graph, torch.randn(len(graph.entities), 32), {})
    mlip = mlip or MLIP(ModelSpec(**tiny.MODEL))
    return Pretraining(mlip, ObjectiveSpec(**objective), knowledge, tokenizer, 4, seed=0)


def batch(n: int = 8, step: int = 0) -> PretrainingBatch:
    """ARL's, with a second view of each image."""
    whole = tiny_arl.batch(n, step)
    noise = torch.randn(whole.views.shape, generator=torch.Generator().manual_seed(1))
    whole.views = torch.cat([whole.views, whole.views + 0.5 * noise], dim=1)  # (n, 2, 3, 32, 32)
    whole.view = torch.arange(n) % 2
    return whole


def run(**changes) -> RunSpec:
    return tiny_arl.run("mlip", **changes)
