"""What names a run: a short hash of everything that its stage reads, of its parent and of the data."""

from __future__ import annotations

from typing import Any

from amif_lib import methods
from amif_lib.core.files import digest
from amif_lib.data.manifests import data_digest
from amif_lib.experiments.run_spec import RunSpec

SETS = ("data.pretrain", "data.decontaminate_against", "data.questions", "data.tokenizer_questions", "teacher.data")


def settings_read(run: RunSpec, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """Settings by dotted name, without those that the run's stage does not read, label, scale and parent.

    They are the run's own, or those of `content`, a stored specification that is to be compared with it.
    """
    content = run.model_dump(mode="json") if content is None else content
    flat: dict[str, Any] = {}
    for section, value in content.items():
        flat |= {f"{section}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {section: value}
    left_out = {"label", "scale", "parent", *methods.settings(run.method).not_read(run)}
    return {
        name: value
        for name, value in flat.items()
        if name not in left_out and not name.startswith("parent.") and value is not None
    }


def data_sets(run: RunSpec) -> list[str]:
    """Names of the manifests whose data a run reads."""
    read = settings_read(run)
    found = {name for key in SETS for name in ([read[key]] if isinstance(read.get(key), str) else read.get(key, ()))}
    return sorted(found - {""})


def run_id(run: RunSpec) -> str:
    """Twelve hexadecimal digits that name the run's directory; equal runs of different tables share it."""
    parent = run_id(run.parent) if run.parent else None
    return digest(
        {**settings_read(run), "parent": parent, "manifests": {name: data_digest(name) for name in data_sets(run)}}
    )
