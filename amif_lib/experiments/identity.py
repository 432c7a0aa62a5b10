"""What names a run: a short hash of everything that its stage reads, of its parent and of the data."""

from __future__ import annotations

from typing import Any

from amif_lib import methods
from amif_lib.core.files import digest
from amif_lib.data.manifests import data_digest
from amif_lib.experiments.run_spec import RunSpec

SETS = ("data.pretrain", "data.decontaminate_against", "data.questions", "data.tokenizer_questions", "teacher.data")


def settings_read(run: RunSpec) -> dict[str, Any]:
    """The run's own settings without those that its stage does not read, and without label and scale."""
    content = run.model_dump(mode="json", exclude={"label", "scale", "parent"})
    return without(content, methods.settings(run.method).not_read(run))


def without(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Sections of settings without those of dotted names; a section that is left empty goes too."""
    sections = {
        key: {name: v for name, v in value.items() if f"{key}.{name}" not in names}
        if isinstance(value, dict)
        else value
        for key, value in content.items()
    }
    return {key: value for key, value in sections.items() if value not in ({}, None)}


def data_sets(run: RunSpec) -> list[str]:
    """Names of the manifests whose data a run reads."""
    read, found = settings_read(run), set()
    for section, _, field in (name.partition(".") for name in SETS):
        value = read.get(section, {}).get(field, ())
        found |= {value} if isinstance(value, str) else set(value)
    return sorted(found - {""})


def run_id(run: RunSpec) -> str:
    """Twelve hexadecimal digits that name the run's directory; equal runs of different tables share it."""
    parent = run_id(run.parent) if run.parent else None
    return digest(
        {**settings_read(run), "parent": parent, "manifests": {name: data_digest(name) for name in data_sets(run)}}
    )
