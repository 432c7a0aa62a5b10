"""AMiF: alignment, mining and fusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def extras(spec: Any, studies: Sequence[Any], notes: dict[str, Any]) -> Any:
    """The teacher's vectors of a run's studies, or None; `notes` gets what `metrics.json` says of them.

    `of(study, pictures)` gives the tensors of a sample, and `folds` the fold of each study, by id: a batch is of one.
    """
    from amif_lib.methods.amif import settings, teacher

    if not (teacher_id := settings.teacher_id(spec)):
        return None
    found = teacher.embeddings(spec, studies)
    notes["teacher"] = found.metrics | {"id": teacher_id}
    return found


def model(folder: Path) -> Any:
    """The fine-tuned network in `folder`, in evaluation mode on the CPU."""
    from amif_lib.methods.amif.network import AMiFForVQA

    return AMiFForVQA.from_pretrained(folder)
