"""The phantom's pre-training sets, each written in the official layout of a real one."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from amif_lib.phantom import captions as phantom_captions
from amif_lib.phantom import reports as phantom_reports
from amif_lib.phantom.cases import draw_case, draw_view, stream, write_beside


def write_mimic_cxr(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    (root / "masks").mkdir(parents=True)
    metadata, splits, masks, cases = [], [], {}, []
    for index in range(counts["studies"]):
        case = draw_case(index, "mimic_cxr", stream(seed, index, 0))
        cases.append(case)
        subject, study = 10_000_000 + 1000 * seed + index, 50_000_000 + 1000 * seed + index
        patient = f"p{str(subject)[:2]}/p{subject}"
        report = root / "mimic-cxr-reports" / "files" / patient / f"s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(phantom_reports.report(case, stream(seed, index, 1)), encoding="utf-8")
        folder = root / "mimic-cxr-jpg" / "files" / patient / f"s{study}"
        folder.mkdir(parents=True)
        for number, view in enumerate(case.views):
            dicom = hashlib.sha256(f"{seed} {index} {view}".encode()).hexdigest()[:40]
            picture, labels, areas = draw_view(case, view, size, stream(seed, index, 2 + number))
            (folder / f"{dicom}.jpg").write_bytes(picture)
            (root / "masks" / f"{dicom}.png").write_bytes(labels)
            masks[dicom] = {"view": view, "areas": areas}
            position, code = {"frontal": ("PA", "postero-anterior"), "lateral": ("LATERAL", "lateral")}.get(
                view, ("", view)
            )
            metadata.append(
                [
                    dicom,
                    subject,
                    study,
                    phantom_reports.procedure(case),
                    position,
                    size,
                    size,
                    21800101 + index,
                    f"{index % 240000:06d}.0",
                    phantom_reports.procedure(case),
                    code,
                    "",
                ]
            )
            splits.append([dicom, study, subject, "train"])
    columns = (
        "dicom_id",
        "subject_id",
        "study_id",
        "PerformedProcedureStepDescription",
        "ViewPosition",
        "Rows",
        "Columns",
        "StudyDate",
        "StudyTime",
        "ProcedureCodeSequence_CodeMeaning",
        "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    )
    tables = {"metadata": (columns, metadata), "split": (("dicom_id", "study_id", "subject_id", "split"), splits)}
    for name, (header, lines) in tables.items():
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([header, *lines])
        path = root / "mimic-cxr-jpg" / f"mimic-cxr-2.0.0-{name}.csv.gz"
        path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
    write_beside(root, cases, masks)


def write_roco(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """ROCO's lists and images: articles of one or two figures, some of them in two splits; some images gone."""
    (root / "masks").mkdir(parents=True)
    cases, masks = [], {}
    lists: dict[str, dict[str, list[str]]] = {
        split: {"captions": [], "dlinks": [], "keywords": [], "licences": ["ROCO_ID,PMC_ID,CC"]}
        for split in ("train", "validation", "test")
    }
    for index in range(counts["studies"]):
        split = {18: "validation", 19: "test"}.get(index % 20, "train")
        name = f"ROCO_{90_000 + index:05d}"  # above the real set's ids
        article, figure = f"PMC{990_000_000 + 1000 * seed + index * 2 // 3}", f"phantom-g{index:03d}.jpg"
        rng = stream(seed, index, 1)
        case = draw_case(index, "vqa_rad", stream(seed, index, 0))
        text = phantom_captions.caption(case, rng)
        licence = phantom_reports.choose(rng, ("CC BY", "CC BY", "CC BY-NC", "CC BY-NC-SA", "NO-CC CODE"))
        rows = lists[split]
        rows["captions"].append(f"{name}\t {text}" if index % 50 != 31 else f"{name}\t ")
        rows["dlinks"].append(f"{name}\twget -r ftp://phantom.invalid/{article}.tar.gz -P /path/to/Dir\t{figure}")
        rows["keywords"].append("\t".join([name, *case.kinds(case.views[0])]))
        rows["licences"].append(f"{name},{article}_{figure},{licence}")
        if index % 40 == 20:  # the article's archive is gone
            continue
        picture, labels, areas = draw_view(case, case.views[0], size, stream(seed, index, 2))
        folder = root / "data" / split / "radiology" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes(picture)
        (root / "masks" / f"{name}.png").write_bytes(labels)
        masks[name] = {"view": case.views[0], "areas": areas}
        cases.append(case)
    for split, files in lists.items():
        folder = root / "data" / split / "radiology"
        folder.mkdir(parents=True, exist_ok=True)
        for kind, lines in files.items():
            (folder / f"{kind}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    write_beside(root, cases, masks)


def write_medicat(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    """MedICaT's release: figures of papers, every tenth no radiology, some captions null, some images gone."""
    folder = root / "release" / "figures"
    folder.mkdir(parents=True)
    (root / "masks").mkdir()
    cases, masks, records = [], {}, []
    for index in range(counts["studies"]):
        paper = hashlib.sha1(f"phantom {seed} {index // 2}".encode()).hexdigest()
        uri, rng = f"{2 + index % 5}-Figure{1 + index % 2}-1.png", stream(seed, index, 1)
        name, radiology = f"{paper}_{uri}", index % 10 != 9
        label = phantom_reports.choose(rng, ("Figure {}. ", "Figure {}: ", "Fig. {}. ", "Fig {} ", "FIGURE {} | "))
        label = label.format(1 + index % 2)
        picture = labels = None
        if radiology:
            case = draw_case(index, "vqa_rad", stream(seed, index, 0))
            text = label + phantom_captions.caption(case, rng)
            if index % 40 != 20:
                picture, labels, areas = draw_view(case, case.views[0], size, stream(seed, index, 2))
                masks[name] = {"view": case.views[0], "areas": areas}
                cases.append(case)
        else:
            text = label + "Photomicrograph of a synthetic specimen, × 400."
            picture = _texture(size, stream(seed, index, 2))
        if picture is not None:
            Image.open(io.BytesIO(picture)).save(folder / name)  # the release has PNG
        if labels is not None:
            (root / "masks" / f"{Path(name).stem}.png").write_bytes(labels)
        missing = index % 20 == 13  # every twentieth has no caption of its own, every fortieth none at all
        records.append(
            {
                "pdf_hash": paper,
                "fig_key": f"Figure{1 + index % 2}",
                "fig_uri": uri,
                "s2_caption": None if missing else text,
                "s2orc_caption": None if index % 40 == 33 or index % 7 == 0 else text,
                "s2orc_references": None if index % 3 == 0 else [f"Imaging was performed ({label.strip(' .:|')})."],
                "radiology": radiology,
                "scope": False,
                "predicted_type": "Medical images",
                "oa_info": None if index % 9 == 4 else _open_access(seed, index, rng),
            }
        )
    path = root / "release" / "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8", newline="\n")
    write_beside(root, cases, masks)


def _open_access(seed: int, index: int, rng: np.random.Generator) -> dict[str, Any]:
    doi = f"10.0000/phantom.{seed}.{index // 2}"
    licence = phantom_reports.choose(rng, ("cc-by", "cc-by-nc", "cc-by-nc-nd", ""))
    status = {"is_oa": True, "oa_status": "gold", "journal_is_oa": True, "journal_is_in_doaj": True}
    access = {**status, "license": licence or None, "provenance": "phantom"}
    return {"doi": doi, "doi_url": f"https://doi.invalid/{doi}", "oa": access}


def _texture(size: int, rng: np.random.Generator) -> bytes:
    """A picture that shows no organ: blotches of two scales, as JPEG."""
    coarse = Image.fromarray(rng.integers(0, 255, (12, 12)).astype(np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.int16) // 2 + rng.integers(0, 127, (size, size), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


WRITERS = {"mimic_cxr": write_mimic_cxr, "roco": write_roco, "medicat": write_medicat}
