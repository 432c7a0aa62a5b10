"""Reader for MIMIC-CXR-JPG (images, metadata, split) with the report texts of MIMIC-CXR, in their official layout.

    <images>/mimic-cxr-2.0.0-metadata.csv.gz, mimic-cxr-2.0.0-split.csv.gz, files/pXX/pSUBJECT/sSTUDY/DICOM.jpg
    <reports>/files/pXX/pSUBJECT/sSTUDY.txt

Written from the documentation of release 2.1.0 without the credentialed files; the phantom writes this layout as well.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import one_line, read_text, with_images
from amif_lib.data.records import Study, StudyImage

log = logging.getLogger(__name__)

SPLITS = ("train", "validate", "test")
LATERAL = ("LATERAL", "LL", "XTABLE LATERAL", "SWIMMERS", "left lateral", "lateral")
FRONTAL = ("AP", "PA", "AP AXIAL", "AP LLD", "AP RLD", "PA LLD", "PA RLD", "LPO", "RPO", "LAO", "RAO")
NAMED = ("antero-posterior", "postero-anterior")  # frontal, in the column of code meanings
VIEWS = dict.fromkeys(LATERAL, "lateral") | dict.fromkeys((*FRONTAL, *NAMED), "frontal")

# A header stands at the start of a line and ends in a colon. In capitals it always counts; in mixed case only where its
# name is known and the line before it ends a sentence or is blank, so that a broken line does not make one.
FINDINGS = ("findings", "finding", "findings and impression", "findings/impression")
IMPRESSION = ("impression", "impressions", "impression and recommendation", "conclusion", "conclusions")
SECTIONS = dict.fromkeys(FINDINGS, "findings") | dict.fromkeys(IMPRESSION, "impression")
# Sections about the examination and not about what it shows ("NDICATION" is a misspelling that occurs)
OTHER = re.compile(
    r"ndication|history|comparison|technique|exam|reason|recommendation|notification|clinical|wet read|addendum|dose|"
    r"procedure|information|physician|\bpfi\b|\bdate\b"
)
HEADER = re.compile(r"^[ \t]*([A-Za-z][A-Za-z /,()&'_-]{1,60}?)[ \t]*:", re.MULTILINE)
TITLE = re.compile(r"^\s*(?:FINAL|WET READ|PRELIMINARY) (?:REPORT|ADDENDUM)[ \t]*$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n\s*\n")


def sections(report: str) -> dict[str, str]:
    """The `findings` and `impression` of a report, white space collapsed; a missing or empty one has no key.

    Of several sections with the same name the last that has text counts, since addenda and wet reads stand at the top.
    A joint "FINDINGS AND IMPRESSION" counts as findings, and so does the text under an unknown header ("PORTABLE AP
    CHEST:") in a report without findings; inside findings or impression an unknown header ("LUNGS:") is part of the
    text. A report with neither has the single key `text`: the paragraphs without a header.
    """
    found: dict[str, str] = {}
    report = BLANK_LINES.sub("\n\n", report.replace("\r\n", "\n"))  # the other expressions are quadratic in line ends
    for part in TITLE.split(report):
        found |= _sections(part)
    if len(found) > 1:
        found.pop("text", None)
    return found


def _sections(part: str) -> dict[str, str]:
    """The sections of one document: a final report, an addendum or a wet read."""
    headers = [match for match in HEADER.finditer(part) if _is_header(match, part)]
    first, *ends = [match.start() for match in headers] + [len(part)]
    loose = [part[:first]]  # paragraphs without a header
    unnamed: list[str] = []  # text under unknown headers
    found: dict[str, list[str]] = {}  # pieces of findings and impression, joined and cleaned once, at the end
    current = ""
    for match, end in zip(headers, ends, strict=True):
        name, text = _name(match), part[match.end() : end]
        if name in SECTIONS:
            current = SECTIONS[name]
            if _clean(text):
                found[current] = [text]
        elif OTHER.search(name):
            current = ""
            loose += text.strip().split("\n\n")[1:]
        elif current:
            found.setdefault(current, []).append(match[0] + text)
        else:
            unnamed.append(text)
    out = {section: _clean(" ".join(pieces)) for section, pieces in found.items()}
    if "findings" not in out and (text := _clean(" ".join(unnamed))):
        out["findings"] = text
    if not out and (text := _clean(" ".join(loose))):
        out["text"] = text
    return out


def _name(match: re.Match[str]) -> str:
    return " ".join(match[1].lower().split())


def _is_header(match: re.Match[str], part: str) -> bool:
    line = part.rfind("\n", 0, max(match.start() - 1, 0)) + 1  # where the line before starts
    ended = part[line : match.start()].strip()[-1:] in ("", ".", ":", ";", "!", "?", "_")
    return match[1].isupper() or (ended and (_name(match) in SECTIONS or OTHER.search(_name(match)) is not None))


def _clean(text: str) -> str:
    text = re.sub(r"_{2,}", " ", text)  # what de-identification removed
    text = re.sub(r" (?=[.,;:](?:\s|$))", "", one_line(text))
    return text if any(character.isalnum() for character in text) else ""


def report_text(report: str) -> str:
    """The text of a study: its findings and impression (or the one that exists), else a report without headers."""
    found = sections(report)
    return " ".join(found[name] for name in ("findings", "impression", "text") if name in found)


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The named columns of a table as text, one row per `dicom_id`."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=list(columns))
    except (OSError, EOFError, ValueError, zlib.error) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{paths.shown(path)}: cannot be read ({one_line(error)}); fetch the file again") from None
    if len(twice := table.loc[table["dicom_id"].duplicated(), "dicom_id"]):
        raise InputError(f"{paths.shown(path)}: image {twice.iloc[0]} occurs twice; fetch the file again")
    return table


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """The studies of the training split, images sorted by DICOM id; a study without any report text is left out.

    `layout`: `images` and `reports`, folders; `metadata` and `split`, files in `images`.
    """
    images, reports, code = root / layout["images"], root / layout["reports"], "ViewCodeSequence_CodeMeaning"
    metadata = _table(images / layout["metadata"], ("dicom_id", "subject_id", "study_id", "ViewPosition", code))
    split = _table(images / layout["split"], ("dicom_id", "split"))
    table = metadata.merge(split, on="dicom_id", how="left")
    if len(unknown := table.loc[~table["split"].isin(SPLITS), "dicom_id"]):
        said = f"image {unknown.iloc[0]} has no split among {', '.join(SPLITS)}; is it the official file?"
        raise InputError(f"{paths.shown(images / layout['split'])}: {said}")
    table = table[table["split"] == "train"].sort_values(["subject_id", "study_id", "dicom_id"])

    studies, empty = [], 0
    for (subject, study), rows in table.groupby(["subject_id", "study_id"], sort=False):
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        text = report_text(read_text(reports / folder / f"s{study}.txt"))
        if not text:
            empty += 1
            continue
        pictures = []
        for dicom, position, meaning in zip(rows["dicom_id"], rows["ViewPosition"], rows[code], strict=True):
            view = VIEWS.get(position) or VIEWS.get(meaning) or (meaning or position).lower()  # "": not recorded
            pictures.append(StudyImage(dicom, images / folder / f"s{study}" / f"{dicom}.jpg", view))
        studies.append(Study(study, tuple(pictures), text, "train", subject))
    if empty:
        log.info("%s: %d studies without report text left out", root.name, empty)
    return with_images(studies, root)
