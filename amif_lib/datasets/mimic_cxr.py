"""Reader for MIMIC-CXR-JPG (images, metadata, split) with the report texts of MIMIC-CXR, in their official layout.

    <images>/mimic-cxr-2.0.0-metadata.csv.gz, mimic-cxr-2.0.0-split.csv.gz, files/pXX/pSUBJECT/sSTUDY/DICOM.jpg
    <reports>/files/pXX/pSUBJECT/sSTUDY.txt

The phantom writes this layout as well, so what reads the demo data reads the real set. Written from the official
documentation of release 2.1.0; the credentialed files themselves were not at hand.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from amif_lib import paths
from amif_lib.datasets.records import Study, StudyImage
from amif_lib.errors import InputError

log = logging.getLogger(__name__)

SPLITS = {"train": "train", "validate": "val", "test": "test"}
LATERAL = {"LATERAL", "LL", "XTABLE LATERAL", "SWIMMERS", "left lateral", "lateral"}
FRONTAL = {
    "AP",
    "PA",
    "AP AXIAL",
    "AP LLD",
    "AP RLD",
    "PA LLD",
    "PA RLD",
    "LPO",
    "RPO",
    "LAO",
    "RAO",
    "antero-posterior",
    "postero-anterior",
}

# A header stands at the start of a line and ends in a colon. Any header in capitals ends the section before it; the
# sections that are read are recognised in mixed case too.
SECTIONS = {
    "findings": "findings",
    "finding": "findings",
    "findings and impression": "findings",
    "findings/impression": "findings",
    "impression": "impression",
    "impressions": "impression",
    "impression and recommendation": "impression",
    "conclusion": "impression",
    "conclusions": "impression",
}
HEADER = re.compile(r"^[ \t]*([A-Za-z][A-Za-z /,()&'_-]{1,60}?)[ \t]*:", re.MULTILINE)
TITLE = re.compile(r"^\s*(FINAL|WET READ|PRELIMINARY) (REPORT|ADDENDUM)[ \t]*$", re.MULTILINE)
DEIDENTIFIED = re.compile(r"_{2,}")


def sections(report: str) -> dict[str, str]:
    """The `findings` and `impression` of a report, white space collapsed; a missing or empty one has no key.

    Of several sections with the same name the last that has text counts, since addenda stand at the top. A joint
    "FINDINGS AND IMPRESSION" counts as findings. A report without any recognised header has the single key `text`, its
    whole text without the title line.
    """
    report = TITLE.sub("", report.replace("\r\n", "\n"))
    headers = [match for match in HEADER.finditer(report) if match[1].isupper() or match[1].strip().lower() in SECTIONS]
    if not headers:
        text = _clean(report)
        return {"text": text} if text else {}
    out: dict[str, str] = {}
    for match, following in zip(headers, [*headers[1:], None], strict=True):
        name = SECTIONS.get(" ".join(match[1].lower().split()))
        text = _clean(report[match.end() : following.start() if following else len(report)])
        if name and text:
            out[name] = text
    return out


def _clean(text: str) -> str:
    return " ".join(DEIDENTIFIED.sub(" ", text).split())  # "___" stands for what de-identification removed


def report_text(report: str, wanted: str = "findings+impression") -> str:
    """The text of a study: the wanted sections, or what there is where they are missing; empty if there is nothing.

    `wanted` is `findings+impression`, `findings` or `impression`. A missing section is replaced by the other one, and a
    report without headers by its whole text.
    """
    found = sections(report)
    chosen = [found[name] for name in wanted.split("+") if name in found] or list(found.values())
    return " ".join(chosen)


def view_of(position: str, code: str) -> str:
    """`frontal`, `lateral`, another named plane in lower case, or `""` where the metadata is blank."""
    for value in (position, code):
        if value in FRONTAL:
            return "frontal"
        if value in LATERAL:
            return "lateral"
    return (code or position).lower()


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: no such file; put MIMIC-CXR-JPG's csv.gz files there") from None
    except (OSError, EOFError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{paths.shown(path)}: cannot be read ({error}); fetch the file again") from None
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise InputError(f"{paths.shown(path)}: column {missing[0]} is missing; is it the official file?")
    return table


def read(
    root: Path,
    layout: Mapping[str, str],
    *,
    report_sections: str = "findings+impression",
    splits: tuple[str, ...] = ("train",),
) -> list[Study]:
    """The studies of the given splits, images sorted by DICOM id; a study without any report text is left out.

    Args:
        root: folder that holds the set.
        layout: `images` and `reports`, folders under `root`; `metadata` and `split`, files under `images`.
        report_sections: see `report_text`.

    Raises:
        InputError: a table, image or report is missing or malformed; names the file.
    """
    images, reports = root / layout["images"], root / layout["reports"]
    metadata = _table(images / layout["metadata"], ("dicom_id", "subject_id", "study_id", "ViewPosition"))
    split = _table(images / layout["split"], ("dicom_id", "study_id", "subject_id", "split"))
    table = metadata.merge(split[["dicom_id", "split"]], on="dicom_id", how="left", validate="one_to_one")
    unknown = table[~table["split"].isin(SPLITS)]
    if len(unknown):
        raise InputError(
            f"{paths.shown(images / layout['split'])}: image {unknown['dicom_id'].iloc[0]} has no split among "
            f"{', '.join(SPLITS)}; is it the official file?"
        )
    table = table.assign(split=table["split"].map(SPLITS))
    table = table[table["split"].isin(splits)].sort_values(["subject_id", "study_id", "dicom_id"], kind="stable")
    codes = table.get("ViewCodeSequence_CodeMeaning", pd.Series("", index=table.index))
    table = table.assign(view=[view_of(*pair) for pair in zip(table["ViewPosition"], codes, strict=True)])

    studies, empty = [], 0
    for (subject, study), rows in table.groupby(["subject_id", "study_id"], sort=False):
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        report = reports / folder / f"s{study}.txt"
        try:
            text = report_text(report.read_text(encoding="utf-8", errors="replace"), report_sections)
        except FileNotFoundError:
            raise InputError(
                f"{paths.shown(report)}: the report of study {study} is missing; unpack mimic-cxr-reports.zip there"
            ) from None
        if not text:
            empty += 1
            continue
        where = images / folder / f"s{study}"
        present = {path.name for path in where.glob("*.jpg")}
        for dicom in rows["dicom_id"]:
            if f"{dicom}.jpg" not in present:
                raise InputError(
                    f"{paths.shown(where / f'{dicom}.jpg')}: image of study {study} is missing; fetch it or drop "
                    f"its line from {layout['metadata']}"
                )
        views = tuple(
            StudyImage(dicom, where / f"{dicom}.jpg", view)
            for dicom, view in zip(rows["dicom_id"], rows["view"], strict=True)
        )
        studies.append(Study(str(study), views, text, rows["split"].iloc[0], str(subject)))
    if empty:
        log.info("%s: %d studies without report text left out", root.name, empty)
    return studies
