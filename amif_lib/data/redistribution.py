"""Old names of what `manifests` says about showing a set; goes when nothing imports it."""

from __future__ import annotations

from typing import Any

from amif_lib.data import manifests
from amif_lib.data.manifests import KINDS, NOTICE, folder_for, may_show, why_not, withheld

__all__ = ["KINDS", "NOTICE", "folder", "may_show", "notice", "why_not", "withheld"]
folder = folder_for


def notice(spec: Any) -> str:
    from amif_lib.experiments.identity import data_sets

    return manifests.notice(name for step in spec.lineage() for name in data_sets(step))


def mark(spec: Any) -> None:
    text = notice(spec)
    for place in (spec.directory, spec.directory / "model") if text else ():
        if place.is_dir():
            (place / NOTICE).write_text(text, encoding="utf-8")
