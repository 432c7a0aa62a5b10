"""Reader for ROCO (Radiology Objects in COntext) in the layout of its repository, images as its `fetch.py` puts them.

    <data>/train/radiology/captions.txt   ROCO_00002 <tab> caption, which starts with a blank
    <data>/train/radiology/licences.txt   ROCO_ID,PMC_ID,CC   (PMC_ID: article, "_", file name)
    <data>/train/radiology/images/ROCO_00002.jpg

Validation and test split, `non-radiology/`, keywords, CUIs and semantic types are not read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import MOST_MISSING, check_once, one_line, read_lines, with_images
from amif_lib.data.records import Study, StudyImage, article_id

ROCO_ID = re.compile(r"ROCO_\d+")
ARTICLE = re.compile(r"PMC\d+")
log = logging.getLogger(__name__)


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per captioned image of the training split; `group_id` is the PMC article, or the image's own id if
    licences.txt does not list it.

    Rows without caption are left out and counted, and so are listed images that do not exist (archives of articles
    disappear), up to `files.MOST_MISSING` of them. `layout`: `data`, the folder of the splits. One article may have
    images in several splits.
    """
    folder = root / layout["data"] / "train" / "radiology"
    source, licences = folder / "captions.txt", _licences(folder / "licences.txt")
    seen: dict[str, str] = {}
    without, studies = 0, []
    for where, line in read_lines(source):
        name, _, caption = line.partition("\t")
        name, caption = name.strip(), one_line(caption)
        if not ROCO_ID.fullmatch(name):
            raise InputError(f"{where}: starts with {name[:30]!r}, not with a ROCO id and a tab; correct the line")
        check_once(name, seen, where)
        if not caption:
            without += 1
            continue
        article, licence = licences.get(name, ("", ""))
        image = StudyImage(name, folder / "images" / f"{name}.jpg")
        extra = {"licence": licence} if licence else {}
        studies.append(Study(name, (image,), caption, "train", article_id(article) or name, extra))
    if without:
        log.info("%s: %d rows without caption left out", paths.shown(source), without)
    return with_images(studies, folder / "images", MOST_MISSING)


def _licences(path: Path) -> dict[str, tuple[str, str]]:
    """ROCO id -> PMC article and licence."""
    (where, header), *rows = read_lines(path)
    if header.split(",") != ["ROCO_ID", "PMC_ID", "CC"]:
        raise InputError(f"{where}: columns must be ROCO_ID,PMC_ID,CC; fetch the file again")
    out = {}
    for where, line in rows:
        name, _, rest = line.partition(",")
        origin, _, code = rest.rpartition(",")  # a file name may hold a comma
        if not (article := ARTICLE.match(origin)):
            raise InputError(f"{where}: {name} has no PMC article; correct or remove the line")
        out[name] = (article[0], code.strip())
    return out
