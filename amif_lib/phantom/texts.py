"""Reports in the form of MIMIC-CXR's and captions in the style of articles, written from a case.

A text states what is there, with paraphrase and hedges, and denies some of what is not, with stock sentences.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from amif_lib.phantom.cases import Case
from amif_lib.phantom.drawing import KINDS_OF

REGION = {"xr_chest": "chest", "ct_head": "head", "mr_brain": "head"}
MODALITY = {"xr_chest": "x-ray", "ct_head": "CT", "mr_brain": "MRI"}
HEDGES = ("", "", "", "", "Likely ", "Possible ", "Findings suggest ", "Findings are concerning for ")
NUMBERS = {1: "one", 2: "two", 3: "three"}
# {size}: severity, {side}, {site}, {number}; the plural for several of a kind
POSITIVE = {
    "nodule": ("{size} nodule in the {side} {site}", "rounded opacity in the {side} {site}, a {size} nodule"),
    "nodules": ("{number} nodules in the {side} lung", "{number} rounded {side} pulmonary nodules"),
    "consolidation": ("{size} consolidation in the {side} {site}", "{size} airspace opacity in the {side} {site}"),
    "pleural effusion": ("{size} {side} pleural effusion", "{side} pleural effusion, {size} in size"),
    "pneumothorax": ("{size} {side} pneumothorax", "{side} pneumothorax, {size}"),
    "cardiomegaly": ("enlarged heart, {size} cardiomegaly", "the cardiac silhouette is enlarged"),
    "infarct": ("{size} infarct in the {side} {site}", "{side} {site} infarction, {size}"),
    "mass": ("{size} mass in the {side} {site} with surrounding edema", "{side} {site} mass, {size}"),
    "hemorrhage": ("{size} hemorrhage in the {side} {site}", "{side} {site} hematoma, {size}"),
    "hydrocephalus": ("enlarged ventricles, hydrocephalus", "the lateral ventricles are dilated"),
}
NEGATIVE = {
    "nodule": ("No pulmonary nodule.", "No nodule or mass is seen."),
    "consolidation": ("No focal consolidation.", "The lungs are clear."),
    "pleural effusion": ("No pleural effusion.", "The costophrenic angles are sharp."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax."),
    "cardiomegaly": ("The heart is normal in size.", "Cardiac silhouette is within normal limits."),
    "infarct": ("No infarct.", "No evidence of acute infarction."),
    "mass": ("No mass.", "There is no mass lesion."),
    "hemorrhage": ("No hemorrhage.", "No evidence of intracranial hemorrhage."),
    "hydrocephalus": ("The ventricles are normal in size.", "No hydrocephalus."),
}
NORMAL = {
    "chest": ("No acute cardiopulmonary process.", "Normal chest."),
    "head": ("Normal brain.", "No acute intracranial abnormality."),
}
IMAGES = {  # the noun phrase that a caption begins with; {view}, {region}, {weighting}
    "xr_chest": ("{view} chest radiograph", "{view} radiograph of the chest", "chest X-ray, {view} view"),
    "mr_brain": ("{view} T{weighting}-weighted MR image of the brain", "T{weighting}-weighted MRI of the head, {view}"),
}
CT = ("{view} CT of the {region}", "{view} computed tomography image of the {region}")
VERBS = ("showing", "demonstrating", "that shows", "revealing")
NOTHING = ("without abnormality", "with normal findings", "showing no abnormality")
POINTERS = ("(arrow)", "(white arrow)", "(arrowhead)")
# Every fifth caption has a remark that is not plain ASCII, as articles do
REMARKS = (" – same patient", " obtained after ≈ 3 months", " (pixels of 1 × 1 mm)")


def _procedure(case: Case) -> str:
    """The examination as the report names it."""
    if case.study == "xr_chest":
        return "CHEST (PA AND LAT)" if "lateral" in case.views else "CHEST (SINGLE VIEW)"
    return f"{MODALITY[case.study]} {REGION[case.study]}".upper()


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def state(case: Case, kind: str, rng: np.random.Generator) -> str:
    """A phrase that states a finding, without capital and full stop."""
    entries = [f for f in case.findings if f["kind"] == kind]
    first, number = entries[0], len(entries)
    template = choose(rng, POSITIVE[f"{kind}s" if number > 1 else kind])
    return template.format(size=first["severity"], side=first["side"], site=first["site"], number=NUMBERS[number])


def sentence(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:] + "."


def _noun(case: Case, view: str, rng: np.random.Generator) -> str:
    words = {"view": view, "region": REGION[case.study], "weighting": 2 if case.anatomy["t2"] > 0.5 else 1}
    return choose(rng, IMAGES.get(case.study, CT)).format(**words)


def report(case: Case, rng: np.random.Generator) -> str:
    """A report in MIMIC-CXR's form: headers in capitals, lines of at most 79 characters, sometimes without sections."""
    present = case.kinds()
    findings = [sentence(_noun(case, " and ".join(case.views), rng))]
    for kind in present:
        phrase = state(case, kind, rng)
        findings.append(sentence(("" if phrase.startswith("the ") else choose(rng, HEDGES)) + phrase))
    absent = [kind for kind in KINDS_OF[case.study] if kind not in present]
    if {"pleural effusion", "pneumothorax"} <= set(absent) and rng.random() < 0.4:
        findings.append("No pleural effusion or pneumothorax.")
        absent = [kind for kind in absent if kind not in ("pleural effusion", "pneumothorax")]
    findings += [choose(rng, NEGATIVE[str(kind)]) for kind in rng.permutation(absent) if rng.random() < 0.75]
    impression = " ".join(sentence(state(case, kind, rng)) for kind in present)
    impression = impression or choose(rng, NORMAL[REGION[case.study]])
    parts = {
        "EXAMINATION": _procedure(case),
        "INDICATION": "___ year old patient, synthetic.",
        "COMPARISON": choose(rng, ("None.", "___.")),
        "FINDINGS": " ".join(findings),
        "IMPRESSION": impression,
    }
    style = rng.random()
    if style < 0.06:  # the impression alone
        parts = {"INDICATION": parts["INDICATION"], "IMPRESSION": f"{findings[0]} {impression}"}
    elif style < 0.1:
        parts = {"EXAMINATION": parts["EXAMINATION"], "FINDINGS AND IMPRESSION": parts["FINDINGS"]}
    elif style > 0.96:  # no headers at all
        parts = {"": " ".join([*findings, impression])}
    paragraphs = (f"{name}:  {text}" if name else text for name, text in parts.items())
    body = "\n \n".join(textwrap.fill(p, 79, initial_indent=" ", subsequent_indent=" ") for p in paragraphs)
    return f"{' ' * 33}FINAL REPORT\n{body}\n"


def caption(case: Case, rng: np.random.Generator) -> str:
    """A caption that names the image, its region and what can be seen in it of the case's findings."""
    view = case.views[0]
    image = _noun(case, view, rng) + (choose(rng, REMARKS) if rng.random() < 0.2 else "")
    seen = case.kinds(view)
    if not seen:
        return sentence(f"{image} {choose(rng, NOTHING)}")
    first, *others = (state(case, kind, rng) for kind in seen)
    joint = "; " if first.startswith("the ") else f" {choose(rng, VERBS)} "
    return " ".join([sentence(f"{image}{joint}{first} {choose(rng, POINTERS)}"), *map(sentence, others)])
