"""Reader for MedPix-2.0 in the re-encoded layout: `captions.jsonl` beside an image folder, one line per image.

The official release has `Case_topic.json`, `Descriptions.json` and PNG files; the data card says how the two relate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amif_lib import paths
from amif_lib.datasets.records import Study, StudyImage
from amif_lib.errors import InputError

SPLITS = {"train": "train", "dev": "val", "test": "test"}
REQUIRED = ("case_id", "image_id", "synpic_id", "file", "split", "caption")


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: no such file; see data_manifests/medpix2.md for the layout") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{paths.shown(path)}: not UTF-8 ({error}); fetch the file again") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{paths.shown(path)}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON ({error.msg}); mend or remove the line") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: a record must be a JSON object; mend or remove the line")
        for key in REQUIRED:
            if not isinstance(record.get(key), str) or not record[key].strip():
                name = record.get("image_id", "?")
                raise InputError(f"{where}: record {name} has no {key}; mend or remove the line")
        if record["split"] not in SPLITS:
            raise InputError(
                f"{where}: record {record['image_id']} has split {record['split']!r}; use {', '.join(SPLITS)}"
            )
        records.append(record)
    if not records:
        raise InputError(f"{paths.shown(path)}: no records; fetch the file again")
    return records


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per case and distinct caption; the images of a case that share a caption are its views.

    The text is the caption, followed by the case's findings where there are any and they do not just repeat it (the
    tokenizer cuts what is too long). All three official splits are returned, `split` telling them apart: the set is
    used for pre-training only and none of its splits is a test set here.

    Args:
        root: folder that holds the set.
        layout: `annotations`, the JSONL file under `root`; image paths in it are relative to `root`.

    Raises:
        InputError: malformed line, missing field or missing image; names file, line and record.
    """
    source = root / layout["annotations"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    present = {path.relative_to(root).as_posix() for path in (root / layout["images"]).glob("*")}
    for record in _records(source):
        if record["file"] not in present:
            raise InputError(
                f"{paths.shown(root / record['file'])}: image of record {record['image_id']} is missing; fetch it or "
                f"remove the record from {source.name}"
            )
        groups.setdefault((record["case_id"], " ".join(record["caption"].split())), []).append(record)
    studies, numbers = [], {}
    for (case, caption), records in groups.items():
        numbers[case] = numbers.get(case, 0) + 1
        findings = " ".join((records[0].get("case_findings") or "").split())
        text = caption if not findings or findings == caption else f"{caption} {findings}"
        images = tuple(StudyImage(r["image_id"], root / r["file"], (r.get("plane") or "").lower()) for r in records)
        studies.append(Study(f"{case}-{numbers[case]}", images, text, SPLITS[records[0]["split"]], case))
    return studies
