"""Reader for ROCO (Radiology Objects in COntext) in the layout of its repository, images as its `fetch.py` puts them.

    <data>/{train,validation,test}/radiology/captions.txt   ROCO_00002 <tab> caption, which starts with a blank
    <data>/.../radiology/licences.txt                       ROCO_ID,PMC_ID,CC   (PMC_ID: article, "_", file name)
    <data>/.../radiology/dlinks.txt                         ROCO_00002 <tab> wget ... PMC4083729.tar.gz ... <tab> file
    <data>/.../radiology/images/ROCO_00002.jpg

Keywords, CUIs and semantic types are not read, nor is `non-radiology/`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers import listing
from amif_lib.data.records import Study, StudyImage, article_id

log = logging.getLogger(__name__)

FOLDERS = {"train": "train", "val": "validation", "test": "test"}
ROCO_ID = re.compile(r"ROCO_\d+")
ARCHIVE = re.compile(r"/(PMC\d+)\.tar\.gz\b")
ARTICLE = re.compile(r"PMC\d+")
HINT = "clone the ROCO repository there (data_manifests/roco.md)"


def read(
    root: Path,
    layout: Mapping[str, str],
    *,
    splits: tuple[str, ...] = ("train",),
    max_missing_images: float = 0.1,
) -> list[Study]:
    """One study per image with a caption; `group_id` is the PMC article (`article_id`), `extra["licence"]` what the list says.

    Articles lose their archives: listed images that do not exist are left out and counted, as are rows without caption.

    Args:
        root: folder that holds the set.
        layout: `data`, the folder of the splits under `root`.
        splits: of `train`, `val`, `test`. They are not by article: one article may supply images to several.
        max_missing_images: share of the listed images of a split that may be absent.

    Raises:
        InputError: a list is missing, empty or malformed, an id occurs twice, or too many images are absent.
    """
    studies: list[Study] = []
    seen: set[str] = set()
    for split in splits:
        folder = root / layout["data"] / FOLDERS[split] / "radiology"
        studies += _read_split(folder, split, seen, max_missing_images)
    return studies


def _read_split(folder: Path, split: str, seen: set[str], limit: float) -> list[Study]:
    source = folder / "captions.txt"
    origin = _licences(folder / "licences.txt")
    archives: dict[str, str] | None = None  # read only where the licences lack a row
    present = listing.file_names(folder / "images")
    absent, without, studies = listing.Absent(source, limit), 0, []
    for number, line in listing.numbered(source, HINT):
        where = f"{paths.shown(source)}, line {number}"
        name, _, caption = line.partition("\t")
        name, caption = name.strip(), " ".join(caption.split())
        if not ROCO_ID.fullmatch(name):
            raise InputError(f"{where}: starts with {name[:30]!r} and not with a ROCO id and a tab; mend the line")
        if name in seen:
            raise InputError(f"{where}: {name} occurs twice; remove one of the lines")
        seen.add(name)
        if not caption:
            without += 1
            continue
        article, licence = origin.get(name, ("", ""))
        if not article:
            archives = _archives(folder / "dlinks.txt") if archives is None else archives
            article = archives.get(name, "")
        if not article:
            raise InputError(f"{where}: neither licences.txt nor dlinks.txt names the article of {name}; add its row")
        image = folder / "images" / f"{name}.jpg"
        if not absent(image, image.name in present):
            extra = {"licence": licence} if licence else {}
            studies.append(Study(name, (StudyImage(name, image),), caption, split, article_id(article), extra))
    absent.settle()
    if without:
        log.info("%s: %d rows without caption left out", paths.shown(source), without)
    return studies


def _licences(path: Path) -> dict[str, tuple[str, str]]:
    """ROCO id -> (PMC article, Creative Commons code); "NO-CC CODE" is a code of the list too."""
    rows = listing.numbered(path, HINT)
    _, header = next(rows)
    if header.split(",") != ["ROCO_ID", "PMC_ID", "CC"]:
        raise InputError(f"{paths.shown(path)}, line 1: columns must be ROCO_ID,PMC_ID,CC; fetch the file again")
    out = {}
    for number, line in rows:
        name, _, rest = line.partition(",")
        origin, _, code = rest.rpartition(",")  # a file name may hold a comma
        article = ARTICLE.match(origin)
        if not article:
            raise InputError(f"{paths.shown(path)}, line {number}: {name} has no PMC article; mend or remove the line")
        out[name] = (article[0], code.strip())
    return out


def _archives(path: Path) -> dict[str, str]:
    """ROCO id -> PMC article, from the archive that the image is fetched from."""
    found = ((line.partition("\t")[0].strip(), ARCHIVE.search(line)) for _, line in listing.numbered(path, HINT))
    return {name: match[1] for name, match in found if match}
