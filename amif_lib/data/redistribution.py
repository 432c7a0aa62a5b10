"""What of a data set may be shown or passed on: the one place that reads a manifest's `redistribution` for others.

Whatever draws a set's images or prints its texts (a figure, an executed notebook, a report, reference results) asks
here first. What may not be shown goes to `results/private/`, which nothing embeds, copies or publishes; of a set that
needs a credential not even there (`manifests.stays_with_data`). Run folders
(`results/runs/`) are working files: they hold predictions with the questions' words, vocabularies and knowledge, are
not committed, and carry a notice where a set behind them forbids passing that on.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests

if TYPE_CHECKING:
    from amif_lib.experiments.rows import RunSpec

Kind = Literal["images", "texts"]
KINDS: tuple[Kind, ...] = ("images", "texts")
NOTICE = "NOT_FOR_REDISTRIBUTION.txt"


def may_show(name: str, kind: Kind) -> bool:
    """Whether images or texts of a set may appear in what others get to see. An unknown set or kind is an InputError."""
    if kind not in KINDS:
        raise InputError(f"redistribution: {kind!r} is not one of {', '.join(KINDS)}")
    return getattr(manifests.load(name).redistribution, kind)


def withheld(names: Iterable[str], kind: Kind) -> list[str]:
    """Those of the sets whose images or texts may not be shown."""
    return sorted({name for name in names if not may_show(name, kind)})


def why_not(name: str, kind: Kind) -> str:
    """One line for the reader, where something is left out."""
    manifest = manifests.load(name)
    return f"{manifest.title}: {kind} not shown, since its terms do not allow it (licence: {manifest.licence.text})."


def folder(wanted: Path, *, images: Iterable[str] = (), texts: Iterable[str] = ()) -> Path:
    """Where a file goes that shows images or texts of these sets.

    `wanted` (a folder under `results/`) if all of it may be shown, else its counterpart under `results/private/`.
    """
    if not withheld(images, "images") and not withheld(texts, "texts"):
        return Path(wanted)
    return private(wanted)


def private(wanted: Path) -> Path:
    """The counterpart under `results/private/` of a folder under `results/`."""
    try:
        return paths.results() / "private" / Path(wanted).resolve().relative_to(paths.results())
    except ValueError:
        raise InputError(f"{paths.shown(wanted)}: not under the results folder; give a folder under it") from None


def notice(spec: RunSpec) -> str:
    """What must be known before a run's folder or weights are passed on; empty where every set allows it.

    A vocabulary fitted on texts, stored knowledge and predictions repeat the texts of the sets behind a run and its
    ancestors.
    """
    from amif_lib.experiments.rows import data_sets

    names = sorted({name for step in spec.lineage() for name in data_sets(step)})
    found = [name for name in names if any(not may_show(name, kind) for kind in KINDS)]
    if not found:
        return ""
    lines = [f"- {manifests.load(name).title}: {manifests.load(name).licence.text}" for name in found]
    return "\n".join(
        [
            "Do not publish this folder, nor the weights, vocabulary or predictions in it, before you have checked the",
            "terms of the data that the run and its ancestors were trained on:",
            *lines,
            "",
        ]
    )


def mark(spec: RunSpec) -> None:
    """Put the notice, where there is one, into a run's folder and beside its weights."""
    text = notice(spec)
    for place in (spec.directory, spec.directory / "model") if text else ():
        if place.is_dir():
            (place / NOTICE).write_text(text, encoding="utf-8")
