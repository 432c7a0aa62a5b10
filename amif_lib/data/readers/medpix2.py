"""Reader for MedPix-2.0, in its official layout or in a re-encoded one that is a tenth of the size.

    official:    Case_topic.json, Descriptions.json, splitted_dataset/*.jsonl, images/<case>_<synpic id>.png
    re-encoded:  captions.jsonl, one line per image, and an image folder

`images_overview.csv` of the official release is not read: it names 261 images that do not exist and misses 261 that do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data.readers import listing
from amif_lib.data.records import Study, StudyImage

SPLITS = {"train": "train", "dev": "val", "test": "test"}
REQUIRED = ("case_id", "image_id", "file", "split", "caption")
HINT = "see data_manifests/medpix2.md for the layout"
Record = dict[str, Any]


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per case and distinct caption; the images of a case that share a caption are its views.

    The text is the caption, followed by the case's findings where there are any and they do not just repeat it (the
    tokenizer cuts what is too long). All three official splits are returned, `split` telling them apart: the set is
    used for pre-training only and none of its splits is a test set here.

    Args:
        root: folder that holds the set.
        layout: `annotations`, a file, and `images`, a folder, both under `root`; in the official layout also `cases`
            (`Case_topic.json`) and `splits` (the folder of the split lists).

    Raises:
        InputError: malformed record, missing field, a case without split, missing image; names file and record.
    """
    source = root / layout["annotations"]
    groups: dict[tuple[str, str], list[Record]] = {}
    folder = layout["images"].strip("/")
    present = {f"{folder}/{name}" for name in listing.file_names(root / folder)}
    seen: set[str] = set()
    for where, record in _official(root, layout) if "cases" in layout else _re_encoded(source):
        _check(where, record)
        if record["file"] not in present:
            raise InputError(
                f"{paths.shown(root / record['file'])}: image of record {record['image_id']} is missing; fetch it or "
                f"remove the record from {source.name}"
            )
        if record["image_id"] in seen:
            raise InputError(f"{where}: record {record['image_id']} occurs twice; remove one of them")
        seen.add(record["image_id"])
        groups.setdefault((record["case_id"], " ".join(record["caption"].split())), []).append(record)
    studies, numbers = [], {}
    for (case, caption), records in groups.items():
        numbers[case] = numbers.get(case, 0) + 1
        findings = _text(records[0].get("case_findings"))
        text = caption if not findings or findings == caption else f"{caption} {findings}"
        images = tuple(StudyImage(r["image_id"], root / r["file"], _text(r.get("plane")).lower()) for r in records)
        studies.append(Study(f"{case}-{numbers[case]}", images, text, SPLITS[records[0]["split"]], case))
    return studies


def _text(value: Any) -> str:
    """White space collapsed; empty for null, a missing key and the release's "N/A"."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return "" if text.upper() == "N/A" else text


def _check(where: str, record: Record) -> None:
    for key in REQUIRED:
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise InputError(f"{where}: record {record.get('image_id') or '?'} has no {key}; mend or remove it")
    if record["split"] not in SPLITS:
        raise InputError(f"{where}: record {record['image_id']} has split {record['split']!r}; use {', '.join(SPLITS)}")


def _re_encoded(source: Path) -> Iterable[tuple[str, Record]]:
    return listing.json_lines(source, HINT)


def _official(root: Path, layout: Mapping[str, str]) -> Iterator[tuple[str, Record]]:
    """The image records of `Descriptions.json` with their case's findings and split, sorted by case and image."""
    source, topics = root / layout["annotations"], root / layout["cases"]
    findings = {}
    for number, case in enumerate(_json_list(topics)):
        name, content = case.get("U_id"), case.get("Case")
        if not isinstance(name, str) or not isinstance(content, dict):
            raise InputError(f"{paths.shown(topics)}: record number {number} has no U_id or no Case; mend or remove it")
        findings[name] = content.get("Findings")
    split_of = _splits(root / layout["splits"])
    records = [(number, record) for number, record in enumerate(_json_list(source))]
    records.sort(key=lambda pair: (str(pair[1].get("U_id")), str(pair[1].get("image"))))
    for number, record in records:
        where = f"{paths.shown(source)}, record number {number}"
        case, image = record.get("U_id"), record.get("image")
        description = record.get("Description")
        if not isinstance(description, dict):
            raise InputError(f"{where}: record {image or '?'} has no Description; mend or remove it")
        if case not in findings:
            raise InputError(f"{where}: case {case} of {image} is not in {topics.name}; fetch both files again")
        if case not in split_of:
            raise InputError(f"{where}: case {case} of {image} is in none of {layout['splits']}/; fetch them again")
        yield (
            where,
            {
                "case_id": case,
                "image_id": image,
                "file": f"{layout['images']}/{image}.png",
                "split": split_of[case],
                "caption": description.get("Caption"),
                "plane": description.get("Plane"),
                "case_findings": findings[case],
            },
        )


def _splits(folder: Path) -> dict[str, str]:
    """Split of each case, from `data_<split>*.jsonl` (training is listed as a whole and in two halves)."""
    out: dict[str, str] = {}
    for split in SPLITS:
        files = sorted(folder.glob(f"data_{split}*.jsonl"))
        if not files:
            raise InputError(f"{paths.shown(folder / f'data_{split}.jsonl')}: no such file; {HINT}")
        for path in files:
            for where, record in listing.json_lines(path, HINT):
                case = record.get("U_id")
                if not isinstance(case, str):
                    raise InputError(f"{where}: record has no U_id; mend or remove the line")
                if out.setdefault(case, split) != split:
                    raise InputError(f"{where}: case {case} is in {split} and in {out[case]}; keep it in one split")
    return out


def _json_list(path: Path) -> list[Record]:
    name = paths.shown(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; {HINT}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 ({error.reason} at byte {error.start}); fetch the file again") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{name}, line {error.lineno}: not valid JSON ({error.msg}); fetch the file again") from None
    if not isinstance(content, list) or not content or not all(isinstance(record, dict) for record in content):
        raise InputError(f"{name}: must hold a list of JSON objects; is it the official file?")
    return content
