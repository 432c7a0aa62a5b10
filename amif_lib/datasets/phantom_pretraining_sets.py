"""The phantom's pre-training sets, each written in the official layout of a real one."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from pathlib import Path

from amif_lib.datasets import phantom_reports
from amif_lib.datasets.phantom_cases import draw_case, draw_view, stream, write_beside


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


WRITERS = {"mimic_cxr": write_mimic_cxr}
