"""Run ids: a short hash of the settings that a run's stage reads (defaults left out), its parent, data and files."""

from __future__ import annotations

from typing import Any

from amif_lib import methods
from amif_lib.core.files import digest
from amif_lib.data.manifests import data_digest
from amif_lib.experiments.run_spec import RunSpec

SETS = ("data.pretrain", "data.decontaminate_against", "data.questions", "data.tokenizer_questions", "teacher.data")
OFF = (0, "", "none", [])  # values that switch a setting off


def settings_read(run: RunSpec, content: dict[str, Any] | None = None) -> dict[str, Any]:
    """The settings that the run's stage reads, by dotted name, without label, scale and parent.

    Values come from `content`, such as a stored specification; by default from the run itself.
    """
    content = run.model_dump(mode="json") if content is None else content
    flat: dict[str, Any] = {}
    for section, value in content.items():
        flat |= {f"{section}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {section: value}
    if isinstance(content.get("teacher"), dict):
        flat["teacher"] = "given"  # else a teacher with default settings would equal no teacher
    left_out = {"label", "scale", "parent", *methods.settings(run.method).not_read(run)}
    return {
        name: value
        for name, value in flat.items()
        if name not in left_out and not name.startswith("parent.") and value is not None
    }


def difference(stored: dict[str, Any], run: RunSpec) -> str:
    """The first setting that `run` reads and whose value in a stored specification differs, with both values; else "".

    A setting that the stored specification lacks was added later; it makes no difference while it is switched off.
    """
    asked, found = settings_read(run), settings_read(run, stored)
    for name in sorted({*asked, *found}):
        if name not in found and asked[name] in OFF:
            continue
        if asked.get(name) != found.get(name):
            return f"{name} (stored: {found.get(name, 'not set')}, asked for: {asked.get(name, 'not set')})"
    if run.parent is None or not isinstance(stored.get("parent"), dict):
        return "parent" if run.parent or stored.get("parent") else ""
    inner = difference(stored["parent"], run.parent)
    return f"parent.{inner}" if inner else ""


def data_sets(run: RunSpec) -> list[str]:
    """Names of the manifests whose data a run reads."""
    read = settings_read(run)
    found = {name for key in SETS for name in ([read[key]] if isinstance(read.get(key), str) else read.get(key, ()))}
    return sorted(found - {""})


def run_id(run: RunSpec) -> str:
    """Twelve hexadecimal digits that name the run's directory; equal runs of different tables share it.

    Settings at their defaults are left out, so that adding a setting does not change the ids of existing runs. Raises
    InputError if a file that the method's settings list (`files_read`) cannot be read.
    """
    settings = methods.settings(run.method)
    files = settings.files_read(run) if hasattr(settings, "files_read") else {}
    changed = settings_read(run, run.model_dump(mode="json", exclude_defaults=True))
    parent = run_id(run.parent) if run.parent else None
    content = {**changed, "parent": parent, "manifests": {name: data_digest(name) for name in data_sets(run)}}
    return digest(content | ({"files": files} if files else {}))
