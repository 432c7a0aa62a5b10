"""Reader for MedICaT: figures of open-access articles with their captions, in the layout of the release archive.

    <annotations>                        JSON Lines: pdf_hash, fig_uri, s2_caption, s2orc_caption, radiology, oa_info, ...
    <images>/<pdf_hash>_<fig_uri>

Whole figures with whole captions: most figures are compound, but only 2,069 have boxes of their parts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers import listing
from amif_lib.data.records import Study, StudyImage, article_id

log = logging.getLogger(__name__)

# "Figure 3. Axial", "Fig. 1: axial", "FIG 2 Axial"; "Figure 1A and B:" and "Figure 1 shows" stay, being part of a sentence
LABEL = re.compile(r"(?i:fig(?:ure)?)\.?\s*\d+(?:\s*[.:|](?!\d)\s*|\s+(?=[A-Z(])|$)")


def caption_of(record: Mapping[str, Any]) -> str:
    """`s2_caption`, else `s2orc_caption`, white space collapsed, without the leading "Figure 3:"; empty if neither."""
    for key in ("s2_caption", "s2orc_caption"):
        text = " ".join((record.get(key) or "").split())
        text = text[match.end() :] if (match := LABEL.match(text)) else text
        if text:
            return text
    return ""


def read(
    root: Path,
    layout: Mapping[str, str],
    *,
    figures: Literal["radiology", "all"] = "radiology",
    max_missing_images: float = 0.1,
) -> list[Study]:
    """One study per figure; `group_id` is the paper (its DOI where oa_info has one, else `pdf_hash`), `extra["licence"]`
    its licence where it is known.

    Figures without any caption and listed images that do not exist are left out and counted.

    Args:
        root: folder that holds the set.
        layout: `annotations`, a JSON Lines file, and `images`, a folder, both under `root`.
        figures: those that the release flags as radiology, or all (endoscopy, histology and others too).
        max_missing_images: share of the figures' images that may be absent.

    Raises:
        InputError: malformed line, missing key, a figure that occurs twice, too many images absent; names file and line.
    """
    source, folder = root / layout["annotations"], root / layout["images"]
    present = listing.file_names(folder)
    absent, without = listing.Absent(source, max_missing_images), 0
    seen: set[str] = set()
    studies = []
    for where, record in listing.json_lines(source, "unpack the MedICaT release there (data_manifests/medicat.md)"):
        for key in ("pdf_hash", "fig_uri"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise InputError(f"{where}: record has no {key}; mend or remove the line")
        name = f"{record['pdf_hash']}_{record['fig_uri']}"
        if name in seen:
            raise InputError(f"{where}: figure {name} occurs twice; remove one of the lines")
        seen.add(name)
        for key in ("s2_caption", "s2orc_caption"):
            if not isinstance(record.get(key), str | None):
                raise InputError(f"{where}: {key} of {name} is not text; mend or remove the line")
        if figures == "radiology":
            if not isinstance(record.get("radiology"), bool):
                raise InputError(
                    f"{where}: radiology of {name} is not true or false; mend it or set medicat_figures: all"
                )
            if not record["radiology"]:
                continue
        text = caption_of(record)
        if not text:
            without += 1
        elif not absent(folder / name, name in present):
            images = (StudyImage(name, folder / name),)
            group = article_id(doi=_within(record, "oa_info", "doi")) or record["pdf_hash"]
            studies.append(Study(name, images, text, "train", group, _licence(record)))
    absent.settle()
    if without:
        log.info("%s: %d figures without caption left out", paths.shown(source), without)
    return studies


def _licence(record: Mapping[str, Any]) -> dict[str, str]:
    """The article's licence, where it is known."""
    found = _within(record, "oa_info", "oa", "license")
    return {"licence": found} if isinstance(found, str) and found else {}


def _within(record: Mapping[str, Any], *keys: str) -> Any:
    """A nested value; `oa_info` and all that is in it may be null."""
    found: Any = record
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
