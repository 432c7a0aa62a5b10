"""Reader for MedPix-2.0, in its official layout or in a re-encoded one that is a tenth of the size.

    official:    Case_topic.json, Descriptions.json, splitted_dataset/*.jsonl, images/<case>_<synpic id>.png
    re-encoded:  captions.jsonl, one line per image, and an image folder

`images_overview.csv` of the official release is not read: it names 261 images that do not exist and misses 261 that do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers.files import (
    Images,
    Record,
    check_keys,
    check_once,
    check_one_of,
    one_line,
    read_json,
    read_json_lines,
)
from amif_lib.data.records import Study, StudyImage

SPLITS = {"train": "train", "dev": "val", "test": "test"}


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per case and distinct caption; the images of a case that share a caption are its views.

    The text is the caption, followed by the case's findings where there are any and they do not just repeat it (the
    tokenizer cuts what is too long). All three official splits are returned, `split` telling them apart: the set is
    used for pre-training only and none of its splits is a test set here.

    `layout`: `annotations`, a file, and `images`, a folder; in the official layout also `cases` (`Case_topic.json`) and
    `splits` (the folder of the split lists).
    """
    rows = _official(root, layout) if "cases" in layout else read_json_lines(root / layout["annotations"])
    groups: dict[tuple[str, str], list[Record]] = {}
    present, seen = Images(), {}
    for where, record in rows:
        name = record.get("image_id") or "?"
        check_keys(record, ("case_id", "image_id", "file", "split", "caption"), f"{where}: record {name}")
        check_one_of(record["split"], SPLITS, f"{where}: record {name}: split")
        present.require(root / record["file"], f"record {name}")
        check_once(f"record {name}", seen, where)
        groups.setdefault((record["case_id"], one_line(record["caption"])), []).append(record)
    studies, numbers = [], Counter()
    for (case, caption), records in groups.items():
        numbers[case] += 1
        findings = _text(records[0].get("case_findings"))
        text = caption if findings in ("", caption) else f"{caption} {findings}"
        images = tuple(StudyImage(r["image_id"], root / r["file"], _text(r.get("plane")).lower()) for r in records)
        studies.append(Study(f"{case}-{numbers[case]}", images, text, SPLITS[records[0]["split"]], case))
    return studies


def _text(value: Any) -> str:
    """White space collapsed; empty for null, a missing key and the release's "N/A"."""
    text = one_line(value) if isinstance(value, str) else ""
    return "" if text.upper() == "N/A" else text


def _official(root: Path, layout: Mapping[str, str]) -> Iterator[tuple[str, Record]]:
    """The image records of `Descriptions.json` with their case's findings and split, sorted by case and image."""
    source, cases = root / layout["annotations"], root / layout["cases"]
    findings = {}
    for number, case in enumerate(read_json(cases)):
        if not isinstance(case.get("U_id"), str) or not isinstance(case.get("Case"), dict):
            raise InputError(f"{paths.shown(cases)}: record number {number} has no U_id or no Case; mend or remove it")
        findings[case["U_id"]] = case["Case"].get("Findings")
    splits = _splits(root / layout["splits"])
    records = list(enumerate(read_json(source)))
    for number, record in sorted(records, key=lambda pair: (str(pair[1].get("U_id")), str(pair[1].get("image")))):
        where = f"{paths.shown(source)}, record number {number}"
        case, image, description = record.get("U_id"), record.get("image"), record.get("Description")
        if not isinstance(description, dict):
            raise InputError(f"{where}: record {image or '?'} has no Description; mend or remove it")
        for known, files in ((findings, cases.name), (splits, f"{layout['splits']}/")):
            if not isinstance(case, str) or case not in known:
                raise InputError(f"{where}: case {case} of {image} is not in {files}; fetch the files again")
        record = {
            "case_id": case,
            "image_id": image,
            "file": f"{layout['images']}/{image}.png",
            "split": splits[case],
            "caption": description.get("Caption"),
            "plane": description.get("Plane"),
            "case_findings": findings[case],
        }
        yield where, record


def _splits(folder: Path) -> dict[str, str]:
    """Split of each case, from `data_<split>*.jsonl` (training is listed as a whole and in two halves)."""
    out: dict[str, str] = {}
    for split in SPLITS:
        whole = folder / f"data_{split}.jsonl"
        for path in sorted(folder.glob(f"data_{split}*.jsonl")) or [
            whole
        ]:  # with neither, the whole is said to be absent
            for where, record in read_json_lines(path):
                check_keys(record, ("U_id",), where)
                if (other := out.setdefault(record["U_id"], split)) != split:
                    raise InputError(
                        f"{where}: case {record['U_id']} is in {split} and in {other}; keep it in one split"
                    )
    return out
