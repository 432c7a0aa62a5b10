"""Readers of the pre-training sets: real MedPix-2.0 counts, hand-made files, MIMIC-CXR's awkward reports, bad input."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amif_lib.core.errors import InputError
from amif_lib.data import check, manifests
from amif_lib.data import load as datasets
from amif_lib.data.readers import medicat, medpix2, mimic_cxr, roco
from tests.conftest import write_picture

ROCO_LAYOUT = manifests.load("roco").layout
MEDICAT_LAYOUT = manifests.load("medicat").layout
OFFICIAL = manifests.load("medpix2").alternatives[0].layout
MIMIC_LAYOUT = manifests.load("mimic_cxr").layout


def complaint(read: Callable[[], Any]) -> str:
    """The one-line message of the InputError that reading must end in."""
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- ROCO ----------------------------------------------------------------------------------------------------------

CAPTIONS = (
    "ROCO_00002\t Axial CT,  ≈3 cm (arrow).\nROCO_00003\t  Same article\tand a tab.\r\nROCO_00005\t \nROCO_00006\n"
    "ROCO_00007\tNo blank. Line\u2028separator\x85inside.\n"
)
LICENCES = (
    "ROCO_ID,PMC_ID,CC\nROCO_00002,PMC111_a_Fig1,2.jpg,CC BY\nROCO_00003,PMC111_b.jpg,NO-CC CODE\n"
    "ROCO_00005,PMC3_c.jpg,CC0\n"
)


def write_roco(root: Path) -> Path:
    folder = root / "data" / "train" / "radiology"
    for line in filter(None, CAPTIONS.split("\n")):
        write_picture(folder / "images" / f"{line.split()[0]}.jpg")
    (folder / "captions.txt").write_bytes(CAPTIONS.encode())
    (folder / "licences.txt").write_bytes(LICENCES.encode())
    return root


def test_roco_reads_the_training_split_by_article(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="amif_lib"):
        studies = roco.read(write_roco(tmp_path / "a set"), ROCO_LAYOUT)
    assert [(s.study_id, s.group_id, s.split, s.extra) for s in studies] == [
        ("ROCO_00002", "pmc:111", "train", {"licence": "CC BY"}),
        ("ROCO_00003", "pmc:111", "train", {"licence": "NO-CC CODE"}),
        ("ROCO_00007", "ROCO_00007", "train", {}),  # no row in licences.txt
    ]
    assert [s.text for s in studies] == [
        "Axial CT, ≈3 cm (arrow).", "Same article and a tab.", "No blank. Line separator inside."]  # fmt: skip
    assert all(len(s.images) == 1 and s.images[0].path.is_file() and s.images[0].view == "" for s in studies)
    assert "2 rows without caption left out" in caplog.text


def test_absent_images_are_left_out_until_more_than_a_tenth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_medicat(tmp_path, *(figure(n) for n in range(1, 11)))
    images = root / MEDICAT_LAYOUT["images"]
    (images / "ab12_3-Figure4-1.png").unlink()
    with caplog.at_level(logging.INFO, logger="amif_lib"):
        assert len(medicat.read(root, MEDICAT_LAYOUT)) == 9
    assert "9 of 10 images found under" in caplog.text and "whose images are missing are left out" in caplog.text
    (images / "ab12_3-Figure7-1.png").unlink()
    message = complaint(lambda: medicat.read(root, MEDICAT_LAYOUT))
    assert "3-Figure4-1.png: image of study" in message and "8 of 10 images found under" in message


# --- MedICaT -------------------------------------------------------------------------------------------------------


def figure(number: int, **changes: object) -> dict[str, object]:
    made: dict[str, object] = {
        "pdf_hash": "ab12", "fig_key": f"Figure{number}", "fig_uri": f"3-Figure{number}-1.png",
        "s2_caption": f"Figure {number}. Caption {number}.", "s2orc_caption": None, "s2orc_references": None,
        "radiology": True, "scope": False, "predicted_type": "Medical images",
        "oa_info": {"doi": "10.1/x", "oa": {"is_oa": True, "license": "cc-by-nc"}}}  # fmt: skip
    return made | changes


def write_medicat(root: Path, *lines: object) -> Path:
    path = root / MEDICAT_LAYOUT["annotations"]
    path.parent.mkdir(parents=True)
    encoded = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(encoded))
    for line in lines:
        if isinstance(line, dict) and str(line.get("fig_uri")).strip():
            write_picture(root / MEDICAT_LAYOUT["images"] / f"{line.get('pdf_hash')}_{line.get('fig_uri')}")
    return root


def test_medicat_reads_radiology_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_medicat(
        tmp_path / "a set",
        figure(1),
        figure(2, radiology=False),
        figure(3, s2_caption=None, s2orc_caption="Fig. 3:  From S2ORC, 13 × 11\u2028cm."),
        figure(4, s2_caption=None),
        figure(5, s2_caption="Figure 5. ", oa_info=None, s2orc_references=["(Fig 5)"]),
        figure(6, pdf_hash="cd34", oa_info={"oa": {"license": None}}),
        figure(7, pdf_hash="cd34", oa_info={"oa": None}),
    )
    with caplog.at_level(logging.INFO, logger="amif_lib"):
        studies = medicat.read(root, MEDICAT_LAYOUT)
    assert [(s.study_id, s.group_id, s.text, s.extra) for s in studies] == [
        ("ab12_3-Figure1-1.png", "ab12", "Caption 1.", {"licence": "cc-by-nc"}),
        ("ab12_3-Figure3-1.png", "ab12", "From S2ORC, 13 × 11 cm.", {"licence": "cc-by-nc"}),
        ("cd34_3-Figure6-1.png", "cd34", "Caption 6.", {}),
        ("cd34_3-Figure7-1.png", "cd34", "Caption 7.", {}),
    ]
    assert all(s.split == "train" and len(s.images) == 1 and s.images[0].path.is_file() for s in studies)
    assert "2 figures without caption left out" in caplog.text


def test_figure_labels_are_cut_off() -> None:
    cut = {"Fig. 12 . Brain CT (A).": "Brain CT (A).", "FIGURE 2 | Chest.": "Chest.", "Figure 3:Liver": "Liver",
           "fig. 1 (A) Barium enema": "(A) Barium enema"}  # fmt: skip
    kept = ("Figure 1A and B: Two.", "Figure 1 shows a mass.", "Figure 1.5 mm slices")
    for caption, text in (cut | dict(zip(kept, kept, strict=True))).items():
        assert medicat.caption_of({"s2_caption": caption}) == text


# --- MedPix-2.0, official layout -----------------------------------------------------------------------------------


def described(case: str, image: str, caption: object = "A caption.", plane: object = "Axial") -> dict[str, Any]:
    description = {"ACR Codes": "8.-1", "Age": "73", "Sex": "male", "Caption": caption, "Figure Part": None,
                   "Modality": " MR - Montage of Images", "Plane": plane}  # fmt: skip
    return {"Type": "MR", "U_id": case, "image": image, "Description": description,
            "Location": "Brain", "Location Category": "Head"}  # fmt: skip


def write_official(root: Path) -> Path:
    """Three cases: two views of one caption and a second study, findings "N/A", and no Findings key at all."""
    images = [described("MPX2", "MPX2_synpic3", "•  Café  au lait"),
              described("MPX1", "MPX1_synpic2", "A  caption.", None), described("MPX1", "MPX1_synpic1"),
              described("MPX1", "MPX1_synpic9", "Other."),
              described("MPX3", "MPX3_synpic4", plane="Photograph")]  # fmt: skip
    cases = [{"U_id": "MPX1", "TAC": ["MPX1_synpic1"], "MRI": [], "Case": {"Title": "T", "Findings": "Two\n\nlines."}},
             {"U_id": "MPX2", "TAC": [], "MRI": [], "Case": {"Title": "T", "Findings": "N/A"}},
             {"U_id": "MPX3", "TAC": [], "MRI": [], "Case": {"Title": "T"}}]  # fmt: skip
    for record in images:
        write_picture(root / "images" / f"{record['image']}.png")
    (root / "Descriptions.json").write_text(json.dumps(images), encoding="utf-8")
    (root / "Case_topic.json").write_text(json.dumps(cases, indent=4), encoding="utf-8")
    (root / "images_overview.csv").write_text("image\nMPX7_synpic777\n", encoding="utf-8")
    (root / "splitted_dataset").mkdir()
    for name, members in {"train": cases[:1], "train_1": cases[:1], "dev": cases[1:2], "test": cases[2:]}.items():
        lines = "".join(json.dumps(case) + "\n" for case in members)
        (root / "splitted_dataset" / f"data_{name}.jsonl").write_text(lines, encoding="utf-8")
    return root


def test_official_medpix_reads(tmp_path: Path) -> None:
    studies = medpix2.read(write_official(tmp_path / "med pix"), OFFICIAL)
    found = [(s.study_id, s.group_id, s.split, s.text, [(i.image_id, i.view) for i in s.images]) for s in studies]
    assert found == [
        ("MPX1-1", "MPX1", "train", "A caption. Two lines.", [("MPX1_synpic1", "axial"), ("MPX1_synpic2", "")]),
        ("MPX1-2", "MPX1", "train", "Other. Two lines.", [("MPX1_synpic9", "axial")]),
        ("MPX2-1", "MPX2", "val", "• Café au lait", [("MPX2_synpic3", "axial")]),
        ("MPX3-1", "MPX3", "test", "A caption.", [("MPX3_synpic4", "photograph")]),
    ]
    assert all(image.path.is_file() and image.path.suffix == ".png" for s in studies for image in s.images)


def as_official(source: Path, root: Path) -> None:
    """The official layout's JSON files, rebuilt from the real set's re-encoded records; images are empty files."""
    lines = [json.loads(line) for line in (source / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    images, cases = [], {}
    (root / "images").mkdir(parents=True)
    for line in lines[::-1]:  # the official order is an other one too
        (root / "images" / f"{line['image_id']}.png").touch()
        record = described(line["case_id"], line["image_id"], line["caption"], line["plane"])
        record["Description"]["Modality"] = f" {line['modality']}"  # the release has blanks before some
        images.append(record | {"Location": line["location"]})
        case = {"Findings": line["case_findings"] or "N/A"}
        cases[line["case_id"]] = {"U_id": line["case_id"], "Case": case, "split": line["split"]}
    (root / "Descriptions.json").write_text(json.dumps(images), encoding="utf-8")
    (root / "Case_topic.json").write_text(json.dumps(list(cases.values())), encoding="utf-8")
    (root / "splitted_dataset").mkdir()
    for split in ("train", "dev", "test"):
        members = [json.dumps(case) for case in cases.values() if case["split"] == split]
        (root / "splitted_dataset" / f"data_{split}.jsonl").write_text("\n".join(members), encoding="utf-8")


def test_both_forms_of_the_real_set_give_the_same_studies(real_data: Path, tmp_path: Path, monkeypatch) -> None:
    """Found by what lies in the folder; the data check says which, and a run on one has another identity."""
    expected, digest = datasets.load_studies("medpix2"), manifests.data_digest("medpix2")
    as_official(real_data / "medpix2", tmp_path / "medpix2")
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    found = datasets.load_studies("medpix2")
    assert [(s.study_id, s.group_id, s.split, s.text) for s in found] == [
        (s.study_id, s.group_id, s.split, s.text) for s in expected]  # fmt: skip
    assert [i.image_id for s in found for i in s.images] == [i.image_id for s in expected for i in s.images]
    assert manifests.data_digest("medpix2") != digest
    checked = check.check(["medpix2"]).set_index("item")
    assert checked.loc["layout", "detail"] == "official: commit d3bc431, PNG"
    assert (checked.loc["Descriptions.json", "status"], checked.loc["images", "status"]) == ("changed", "changed")
    assert checked.loc["images_overview.csv", "status"] == "ok"  # absent, optional
    assert set(checked.loc[[item for item in checked.index if ": " in item], "status"]) == {"ok"}
    monkeypatch.setenv("DATA_ROOT", str(real_data))
    assert manifests.data_digest("medpix2") == digest


def test_real_cases_whose_images_share_one_caption_are_one_study(real_data: Path) -> None:
    captions: dict[str, list[str]] = {}
    for line in map(json.loads, (real_data / "medpix2" / "captions.jsonl").read_text("utf-8").splitlines()):
        captions.setdefault(line["case_id"], []).append(line["caption"])
    shared = {case for case, found in captions.items() if len(found) > 1 and len(set(found)) == 1}
    studies = datasets.load_studies("medpix2")
    assert {s.group_id for s in studies if len(s.images) == len(captions[s.group_id]) > 1} == shared
    assert len(shared) == 137


# --- MIMIC-CXR -----------------------------------------------------------------------------------------------------

HEAD = " " * 33 + "FINAL REPORT\n"
PRIOR = """ EXAMINATION:  CHEST (PORTABLE AP)

 INDICATION:  ___ year old woman with dyspnea  // effusion?

 COMPARISON:  Chest radiograph from ___.

 FINDINGS:

 As compared to the previous radiograph of ___, the right pleural effusion has
 decreased.  The heart
 is unchanged.

 IMPRESSION:

 1.  Smaller effusion.
 2.  No pneumonia.  This was discussed with Dr. ___ by telephone; his
 impression: agreed.

 NOTIFICATION:  Paged at 3:45 PM.
"""
AWKWARD = {
    "priors, breaks, a header word inside a sentence": (
        HEAD + PRIOR,
        {"findings": "As compared to the previous radiograph of, the right pleural effusion has decreased. The heart "
                     "is unchanged.",
         "impression": "1. Smaller effusion. 2. No pneumonia. This was discussed with Dr. by telephone; his "
                       "impression: agreed."}),
    "wet read above": (
        "                                 WET READ: ___ ___ ___ 8:20 PM\n  Possible pneumonia.\n WET READ VERSION #1\n"
        " ______________\n" + HEAD + " HISTORY:  Cough.\n\n IMPRESSION:  No pneumonia.\n",
        {"impression": "No pneumonia."}),
    "addendum above, with sections of its own": (
        "                                FINAL ADDENDUM\n ADDENDUM:  Read again.\n FINDINGS:  Added nodule.\n" + HEAD
        + " FINDINGS:  Clear lungs.\n IMPRESSION:  Normal.\n",
        {"findings": "Clear lungs.", "impression": "Normal."}),
    "NDICATION ends the section before it": (
        "FINDINGS:  Clear.\n\nNDICATION:  Cough and IMPRESSION of fever.\n", {"findings": "Clear."}),
    "lower case": ("Indication: cough.\nfindings: Clear lungs.\nTechnique: PA.\nimpression: Normal.\n",
                   {"findings": "Clear lungs.", "impression": "Normal."}),
    "a line broken before a word that names a section": (
        "IMPRESSION:  I agree with the above\n findings: nothing new.\n",
        {"impression": "I agree with the above findings: nothing new."}),
    "several of one name": ("IMPRESSION: Old.\nFINDINGS: F.\nIMPRESSION:  ___.\nIMPRESSION: New.\n",
                            {"findings": "F.", "impression": "New."}),
    "parts of the findings": ("FINDINGS:\n LUNGS:  Clear.\n HEART:  Large.\nIMPRESSION: CHF.\n",
                              {"findings": "LUNGS: Clear. HEART: Large.", "impression": "CHF."}),
    "findings under the name of the view": ("HISTORY: x.\nPORTABLE AP CHEST:  Clear.\nIMPRESSION: Normal.\n",
                                            {"findings": "Clear.", "impression": "Normal."}),
    "only a view's name": ("TECHNIQUE: Two views.\nCHEST (PA AND LAT):  Clear.\n", {"findings": "Clear."}),
    "paragraph under no header": (
        " EXAMINATION:  CHEST\n\n INDICATION:  Cough.\n\n PA and lateral views show clear lungs.\n",
        {"text": "PA and lateral views show clear lungs."}),
    "no headers": (HEAD + " Portable view shows\n clear ___ lungs.\n", {"text": "Portable view shows clear lungs."}),
    "only ___": (HEAD + " FINDINGS:  ___.\n", {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_reports(kind: str) -> None:
    report, expected = AWKWARD[kind]
    assert mimic_cxr.sections(report) == mimic_cxr.sections(report.replace("\n", "\r\n")) == expected


def test_a_long_list_of_organs_is_cleaned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned, clean = [], mimic_cxr.one_line
    monkeypatch.setattr(mimic_cxr, "one_line", lambda text: cleaned.append(text) or clean(text))
    assert mimic_cxr.sections("FINDINGS: a\n" + "AB: c\n" * 500) == {"findings": "a" + " AB: c" * 500}
    assert sum(map(len, cleaned)) < 10_000  # characters; the report has 3,012


def write_mimic(root: Path, lines: list[tuple[str, ...]], reports: dict[str, bytes]) -> Path:
    """`lines`: dicom, subject, study, ViewPosition, view code, split."""
    images, texts = root / MIMIC_LAYOUT["images"], root / MIMIC_LAYOUT["reports"]
    for dicom, subject, study, *_ in lines:
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        write_picture(images / folder / f"s{study}" / f"{dicom}.jpg")
        (texts / folder).mkdir(parents=True, exist_ok=True)
        (texts / folder / f"s{study}.txt").write_bytes(reports[study])
    tables = {
        "metadata": ["dicom_id,subject_id,study_id,ViewPosition,Rows,ViewCodeSequence_CodeMeaning"]
        + [f"{d},{p},{s},{v},3056,{c}" for d, p, s, v, c, _ in lines],
        "split": ["dicom_id,study_id,subject_id,split"] + [f"{d},{s},{p},{x}" for d, p, s, _, _, x in lines],
    }
    for name, rows in tables.items():
        (images / MIMIC_LAYOUT[name]).write_bytes(gzip.compress("\n".join(rows).encode()))
    return root


LINES = [
    ("d9", "10000001", "50000009", "", "", "train"),
    ("d2", "10000001", "50000002", "LATERAL", "", "train"),
    ("d3", "10000001", "50000002", "", "postero-anterior", "train"),
    ("d1", "10000001", "50000002", "AP", "", "train"),
    ("d5", "10000002", "50000005", "LL", "lateral", "train"),
    ("d6", "10000002", "50000006", "PA", "", "train"),
    ("d7", "10000003", "50000007", "PA", "", "test"),
]
REPORTS = {
    "50000009": b"FINDINGS: One view.\nIMPRESSION: Fine.", "50000002": b"IMPRESSION: Three views.",
    "50000005": b"No headers.", "50000006": b"INDICATION: Nothing else.", "50000007": b"FINDINGS: Test."}  # fmt: skip


def test_mimic_views_and_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_mimic(tmp_path, LINES, REPORTS)
    with caplog.at_level(logging.INFO, logger="amif_lib"):
        studies = mimic_cxr.read(root, MIMIC_LAYOUT)
    assert [(s.study_id, s.text, [(i.image_id, i.view) for i in s.images]) for s in studies] == [
        ("50000002", "Three views.", [("d1", "frontal"), ("d2", "lateral"), ("d3", "frontal")]),
        ("50000009", "One view. Fine.", [("d9", "")]),
        ("50000005", "No headers.", [("d5", "lateral")]),
    ]
    assert "1 studies without report text left out" in caplog.text


# --- malformed files ------------------------------------------------------------------------------------------------


def again(content: str) -> str:
    """The file with its second line (of several) once more at the end."""
    return f"{content}\n{content.splitlines()[1]}"


TRAIN, TABLE, FIGURES = "data/train/radiology", "mimic-cxr-jpg/mimic-cxr-2.0.0", MEDICAT_LAYOUT["annotations"]
DAMAGED = [
    (roco, f"{TRAIN}/captions.txt", lambda c: "ROCO_00002\t a\nROCO_00002\t b\n", "line 2: ROCO_00002 occurs twice"),
    (medicat, FIGURES, lambda c: c + '\n{"pdf_', "not valid JSON"),
    (medicat, FIGURES, lambda c: re.sub('"oa": {.*?}', '"oa": []', c), "line 1: oa_info.oa of ab12_3-Figure1-1.png is"),
    (medicat, FIGURES, lambda c: re.sub('"oa_info": {.*}', '"oa_info": [1]}', c), "oa_info of ab12_3-Figure1-1.png is"),
    (medpix2, "Descriptions.json", lambda c: c.replace("A  caption.", ""), "MPX1_synpic2: caption is missing, empty"),
    (medpix2, "Descriptions.json", lambda c: c.replace("MPX3_synpic4", "MPX3_x"), "MPX3_x.png: image of study MPX3-1"),
    (medpix2, "splitted_dataset/data_dev.jsonl", lambda c: '{"U_id": "MPX1"}', "case MPX1 is in dev and in train"),
    (medpix2, "splitted_dataset/data_test.jsonl", lambda c: '{"U_id": "MPX5"}', "a record lacks 'MPX3', or a case has"),
    (mimic_cxr, f"{TABLE}-split.csv.gz", again, "split.csv.gz: image d9 occurs twice"),
    (mimic_cxr, f"{TABLE}-split.csv.gz", lambda c: c.replace("test", "dev"), "image d7 has no split among"),
    (mimic_cxr, f"{TABLE}-metadata.csv.gz", lambda c: c.replace("study_id", "study"), "not found: ['study_id']"),
    (mimic_cxr, "mimic-cxr-reports/files/p10/p10000001/s50000002.txt", None, "s50000002.txt: no such file"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "change", "message"), DAMAGED)
def test_malformed_files_are_named(tmp_path: Path, reader: Any, name: str, change: Any, message: str) -> None:
    root = {
        roco: write_roco, medpix2: write_official,
        medicat: lambda root: write_medicat(root, figure(1), figure(2)),
        mimic_cxr: lambda root: write_mimic(root, LINES, REPORTS),
    }[reader](tmp_path / "a set")  # fmt: skip
    unpack, pack = (gzip.decompress, gzip.compress) if name.endswith(".gz") else (bytes, bytes)
    content = (root / name).read_bytes()
    (root / name).unlink()
    if change:
        (root / name).write_bytes(pack(change(unpack(content).decode()).encode()))
    layout = {roco: ROCO_LAYOUT, medicat: MEDICAT_LAYOUT, medpix2: OFFICIAL, mimic_cxr: MIMIC_LAYOUT}[reader]
    assert message in complaint(lambda: reader.read(root, layout))
