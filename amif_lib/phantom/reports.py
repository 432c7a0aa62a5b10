"""Writes the phantom's reports from a latent case, in the form of MIMIC-CXR's.

A report states what is there (with paraphrase and hedges) and denies some of what is not, with the stock sentences that
make two reports differ in a few words only.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from amif_lib.phantom.canvas import KINDS_OF

if TYPE_CHECKING:
    from amif_lib.phantom.cases import Case

REGION = {"xr_chest": "chest", "ct_chest": "chest", "ct_abdomen": "abdomen", "ct_head": "head", "mr_brain": "head"}
MODALITY = {"xr_chest": "x-ray", "ct_chest": "CT", "ct_abdomen": "CT", "ct_head": "CT", "mr_brain": "MRI"}
HEDGES = ("", "", "", "", "Likely ", "Possible ", "Findings suggest ", "Findings are concerning for ")

# {size}: severity, {side}, {site}, {number}
POSITIVE = {
    "nodule": (
        "{size} nodule in the {side} {site}",
        "rounded opacity in the {side} {site}, a {size} nodule",
        "{size} {side} pulmonary nodule",
    ),
    "nodules": ("{number} nodules in the {side} lung", "{number} rounded {side} pulmonary nodules"),
    "consolidation": (
        "{size} consolidation in the {side} {site}",
        "{size} airspace opacity in the {side} {site}",
        "{side} consolidation concerning for pneumonia",
    ),
    "pleural effusion": ("{size} {side} pleural effusion", "{side} pleural effusion, {size} in size"),
    "pneumothorax": ("{size} {side} pneumothorax", "{side} pneumothorax, {size}"),
    "cardiomegaly": (
        "enlarged heart, {size} cardiomegaly",
        "the cardiac silhouette is enlarged",
        "{size} cardiomegaly",
    ),
    "liver lesion": ("a {size} hypodense lesion in the liver", "hypodense liver lesion, {size}"),
    "liver lesions": ("{number} hypodense lesions in the liver", "{number} hypodense liver lesions"),
    "kidney stone": ("{size} stone in the {side} kidney", "{side} renal calculus, {size}"),
    "renal mass": ("{size} mass of the {side} kidney", "{side} renal mass, {size}"),
    "ascites": ("free fluid in the abdomen, ascites", "ascites around the liver and spleen"),
    "infarct": ("{size} infarct in the {side} {site}", "{side} {site} infarction, {size}"),
    "mass": ("{size} mass in the {side} {site} with surrounding edema", "{side} {site} mass, {size}"),
    "hemorrhage": ("{size} hemorrhage in the {side} {site}", "{side} {site} hematoma, {size}"),
    "midline shift": ("midline shift to the {away}", "midline structures are displaced to the {away}"),
    "hydrocephalus": ("enlarged ventricles, hydrocephalus", "the lateral ventricles are dilated"),
}
NEGATIVE = {
    "nodule": ("No pulmonary nodule.", "No nodule or mass is seen."),
    "consolidation": ("No focal consolidation.", "The lungs are clear.", "No evidence of pneumonia."),
    "pleural effusion": ("No pleural effusion.", "There is no pleural effusion.", "The costophrenic angles are sharp."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax."),
    "cardiomegaly": (
        "The heart is normal in size.",
        "Heart size is normal.",
        "Cardiac silhouette is within normal limits.",
    ),
    "liver lesion": ("The liver is unremarkable.", "No focal liver lesion."),
    "kidney stone": ("No renal calculus.", "No kidney stone is seen."),
    "renal mass": ("The kidneys are unremarkable.", "No renal mass."),
    "ascites": ("No ascites.", "There is no free fluid."),
    "infarct": ("No infarct.", "No evidence of acute infarction."),
    "mass": ("No mass.", "There is no mass lesion."),
    "hemorrhage": ("No hemorrhage.", "No evidence of intracranial hemorrhage."),
    "hydrocephalus": ("The ventricles are normal in size.", "No hydrocephalus."),
}
NORMAL = {
    "chest": ("No acute cardiopulmonary process.", "Normal chest.", "No acute cardiopulmonary abnormality."),
    "abdomen": ("Normal abdomen.", "No acute abdominal abnormality."),
    "head": ("Normal brain.", "No acute intracranial abnormality."),
}
NUMBERS = {1: "one", 2: "two", 3: "three"}


def procedure(case: Case) -> str:
    """The examination as the report and the metadata name it."""
    if case.study == "xr_chest":
        return "CHEST (PA AND LAT)" if "lateral" in case.views else "CHEST (SINGLE VIEW)"
    return f"{MODALITY[case.study]} {REGION[case.study]}".upper()


def choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def state(case: Case, kind: str, rng: np.random.Generator) -> str:
    """A phrase that states a finding, without capital and full stop."""
    entries = [f for f in case.findings if f["kind"] == kind]
    first = entries[0]
    template = choose(rng, POSITIVE[f"{kind}s" if len(entries) > 1 else kind])
    side = first["side"]
    return template.format(
        size=first["severity"],
        side=side,
        site=first["site"] or "lung",
        number=NUMBERS[len(entries)],
        away={"left": "right", "right": "left", "": ""}[side],
    )


def sentence(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:] + "."


def _technique(case: Case, rng: np.random.Generator) -> str:
    region, views = (
        REGION[case.study],
        [v for v in ("frontal", "lateral", "axial", "coronal", "sagittal") if v in case.views],
    )
    listed = " and ".join([", ".join(views[:-1]), views[-1]] if len(views) > 1 else views).capitalize()
    image = {"xr_chest": "radiograph", "mr_brain": f"T{2 if case.anatomy['t2'] > 0.5 else 1} weighted MR image"}
    noun = image.get(case.study, "CT image") + ("s" if len(views) > 1 else "")
    return choose(
        rng,
        (
            f"{listed} {noun} of the {region}.",
            f"{listed} {noun} of the {region} {'were' if len(views) > 1 else 'was'} obtained.",
        ),
    )


def report(case: Case, rng: np.random.Generator) -> str:
    """A report in MIMIC-CXR's form: headers in capitals, lines of at most 79 characters, sometimes without sections."""
    present = case.kinds()
    findings = [_technique(case, rng)]
    for kind in present:
        phrase = state(case, kind, rng)
        hedge = "" if phrase.startswith(("the ", "midline")) else choose(rng, HEDGES)
        findings.append(sentence(hedge + phrase))
    absent = [kind for kind in KINDS_OF[case.study] if kind not in present]
    if {"pleural effusion", "pneumothorax"} <= set(absent) and rng.random() < 0.4:
        findings.append("No pleural effusion or pneumothorax.")
        absent = [kind for kind in absent if kind not in ("pleural effusion", "pneumothorax")]
    denied = [str(kind) for kind in rng.permutation(absent) if rng.random() < 0.75]
    findings += [choose(rng, NEGATIVE[kind]) for kind in denied]
    if present:
        impression = " ".join(sentence(state(case, kind, rng)) for kind in present)
    else:
        impression = choose(rng, NORMAL[REGION[case.study]])
    style = rng.random()
    parts = {
        "INDICATION": "___ year old patient, synthetic.",
        "COMPARISON": choose(rng, ("None.", "___.")),
        "FINDINGS": " ".join(findings),
        "IMPRESSION": impression,
    }
    if style < 0.06:  # the impression alone
        parts = {"INDICATION": parts["INDICATION"], "IMPRESSION": f"{findings[0]} {impression}"}
    elif style < 0.1:
        parts = {"FINDINGS AND IMPRESSION": " ".join(findings)}
    head = " " * 33 + "FINAL REPORT\n"
    if style > 0.96:  # no headers at all
        return (
            head
            + textwrap.fill(" ".join([*findings, impression]), 79, initial_indent=" ", subsequent_indent=" ")
            + "\n"
        )
    body = [f" EXAMINATION:  {procedure(case)}"]
    body += [
        textwrap.fill(f"{name}:  {text}", 79, initial_indent=" ", subsequent_indent=" ") for name, text in parts.items()
    ]
    return head + "\n \n".join(body) + "\n"
