"""Reader for MedICaT: figures of open-access articles with their captions, in the layout of the release archive.

<annotations>                      JSON Lines: pdf_hash, fig_uri, s2_caption, s2orc_caption, radiology, oa_info, ...
<images>/<pdf_hash>_<fig_uri>
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import MOST_MISSING, check_keys, check_once, one_line, read_json_lines, with_images
from amif_lib.data.records import Study, StudyImage, article_id

TYPES = {"s2_caption": str | None, "s2orc_caption": str | None, "radiology": bool}
TYPES |= {"oa_info": dict | None, "oa_info.oa": dict | None}
log = logging.getLogger(__name__)

# "Figure 3. Axial", "Fig. 1: axial", "FIG 2 Axial"; "Figure 1A and B:" and "Figure 1 shows" stay: parts of a sentence
LABEL = re.compile(r"(?i:fig(?:ure)?)\.?\s*\d+(?:\s*[.:|](?!\d)\s*|\s+(?=[A-Z(])|$)")


def caption_of(record: Mapping[str, Any]) -> str:
    """`s2_caption`, else `s2orc_caption`, white space collapsed, without the leading "Figure 3:"; empty if neither."""
    captions = (one_line(record.get(key) or "") for key in ("s2_caption", "s2orc_caption"))
    texts = (caption[match.end() :] if (match := LABEL.match(caption)) else caption for caption in captions)
    return next(filter(None, texts), "")


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per figure that the release flags as radiology; `group_id` is the paper (its DOI where oa_info has one,
    else `pdf_hash`), `extra["licence"]` its licence where it is known.

    Figures and captions are whole: most figures are compound, but only 2,069 have boxes of their parts.
    Figures without any caption and listed images that do not exist, up to `files.MOST_MISSING` of them, are left out
    and counted. `layout`: `annotations`, a JSON Lines file, and `images`, a folder.
    """
    source, without, studies = root / layout["annotations"], 0, []
    seen: dict[str, str] = {}
    for where, record in read_json_lines(source):
        check_keys(record, ("pdf_hash", "fig_uri"), where)
        name = f"{record['pdf_hash']}_{record['fig_uri']}"
        check_once(f"figure {name}", seen, where)
        access = record.get("oa_info") or {}  # it may be null, and so may every value in it
        given = record | {"oa_info.oa": access.get("oa") if isinstance(access, dict) else None}
        for key, kind in TYPES.items():
            if not isinstance(given.get(key), kind):
                raise InputError(f"{where}: {key} of {name} is not of type {kind}; correct or remove the line")
        if not record["radiology"]:
            continue
        if not (text := caption_of(record)):
            without += 1
            continue
        group = article_id(doi=access.get("doi")) or record["pdf_hash"]
        extra = {"licence": licence} if (licence := (given["oa_info.oa"] or {}).get("license")) else {}
        image = StudyImage(name, root / layout["images"] / name)
        studies.append(Study(name, (image,), text, "train", group, extra))
    if without:
        log.info("%s: %d figures without caption left out", paths.shown(source), without)
    return with_images(studies, root / layout["images"], MOST_MISSING)
