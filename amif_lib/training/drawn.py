"""The batches that a stored pre-training drew, made again to look at its labels and negatives."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from amif_lib import methods
from amif_lib.data.load import pretraining_studies
from amif_lib.experiments.run_spec import RunSpec
from amif_lib.networks import tokenizers
from amif_lib.training.batches import PretrainingData, epoch_keys, total_steps


def drawn(spec: RunSpec) -> Callable[[int], tuple[Any, list[Any]]]:
    """A function that gives the global batch of a step (-1: the last) and its studies; data are read when called."""

    @lru_cache(maxsize=1)
    def read() -> PretrainingData:
        studies = pretraining_studies(spec.data, spec.model.stored_side)
        extras = methods.load(spec.method).extras(spec, studies, {})
        return PretrainingData(studies, spec, tokenizers.load(spec.directory / "model"), extras)

    def at(step: int) -> tuple[Any, list[Any]]:
        data = read()
        _, _, keys = next(epoch_keys(data, spec, step % total_steps(data, spec)))
        return data.collate([data[key] for key in keys]), [data.studies[key[1]] for key in keys]

    return at
