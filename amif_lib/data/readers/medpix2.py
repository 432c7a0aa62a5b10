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
from amif_lib.data.readers import files
from amif_lib.data.readers.files import Record, one_line
from amif_lib.data.records import Study, StudyImage

SPLITS = {"train": "train", "dev": "val", "test": "test"}


def read(root: Path, layout: Mapping[str, str]) -> list[Study]:
    """One study per case and distinct caption; the images of a case that share a caption are its views.

    The text is the caption, followed by the case's findings unless they are empty or repeat it (the tokenizer cuts
    what is too long). All three official splits are returned, with their names in `split`: the set is used for
    pre-training only and none of its splits is a test set here.

    `layout`: `annotations`, a file, and `images`, a folder; in the official layout also `cases` (`Case_topic.json`) and
    `splits` (the folder of the split lists).
    """
    groups: dict[tuple[str, str], list[Record]] = {}  # by case and caption
    for record in records(root, layout):
        groups.setdefault((record["case_id"], one_line(record["caption"])), []).append(record)
    studies, numbers = [], Counter()
    for (case, caption), group in groups.items():
        numbers[case] += 1
        findings = text_of(group[0].get("case_findings"))
        text = caption if findings in ("", caption) else f"{caption} {findings}"
        images = tuple(StudyImage(r["image_id"], root / r["file"], text_of(r.get("plane")).lower()) for r in group)
        studies.append(Study(f"{case}-{numbers[case]}", images, text, SPLITS[group[0]["split"]], case))
    return files.with_images(studies, root)


def records(root: Path, layout: Mapping[str, str]) -> list[Record]:
    """The checked image records of either layout, with the keys of the re-encoded one. InputError names the record."""
    rows, seen = [], {}
    source = root / layout["annotations"]
    for where, record in _official(root, layout) if "cases" in layout else files.read_json_lines(source):
        name = f"record {record.get('image_id')}"
        files.check_keys(record, ("case_id", "image_id", "file", "split", "caption"), f"{where}: {name}")
        files.check_one_of(record["split"], SPLITS, f"{where}: {name}: split")
        files.check_once(name, seen, where)
        rows.append(record)
    return rows


def text_of(value: Any) -> str:
    """White space collapsed; empty for null, a missing key and the release's "N/A"."""
    text = one_line(value) if isinstance(value, str) else ""
    return "" if text.upper() == "N/A" else text


def _official(root: Path, layout: Mapping[str, str]) -> Iterator[tuple[str, Record]]:
    """The image records of `Descriptions.json` with their case's findings and split, sorted by case and image."""
    source, cases = root / layout["annotations"], root / layout["cases"]
    splits = _splits(root / layout["splits"])
    try:
        findings = {case["U_id"]: case["Case"].get("Findings") for case in files.read_json(cases)}
        rows = [(one, one["Description"]) for one in files.read_json(source)]
        for record, about in sorted(rows, key=lambda row: (row[0]["U_id"], row[0]["image"])):
            case, image = record["U_id"], record["image"]
            described = {key.lower(): about.get(key) for key in ("Caption", "Plane", "Modality")}
            described |= {"location": record.get("Location"), "case_findings": findings[case]}
            file = f"{layout['images']}/{image}.png"
            known = {"case_id": case, "image_id": image, "file": file, "split": splits[case]}
            yield paths.shown(source), known | described
    except (KeyError, TypeError, AttributeError) as error:
        said = f"{paths.shown(source)} with {cases.name} and {layout['splits']}/"
        raise InputError(f"{said}: a record lacks {error}, or a case has no split; fetch the files again") from None


def _splits(folder: Path) -> dict[str, str]:
    """Split of each case, from `data_<split>*.jsonl` (training is listed as a whole and in two halves)."""
    out: dict[str, str] = {}
    for split in SPLITS:
        listed = sorted(folder.glob(f"data_{split}*.jsonl"))
        for path in listed or [folder / f"data_{split}.jsonl"]:  # without any list, the error names this one
            for where, record in files.read_json_lines(path):
                files.check_keys(record, ("U_id",), where)
                if (other := out.setdefault(record["U_id"], split)) != split:
                    said = f"{where}: case {record['U_id']} is in {split} and in {other}"
                    raise InputError(f"{said}; keep it in one split")
    return out
