"""Writes the phantom's texts from a latent case: reports in MIMIC-CXR's style and questions in VQA-RAD's records.

Reports state what is there (with paraphrase and hedges) and deny some of what is not, with the stock sentences that make
two reports differ in a few words only. Yes/no questions are balanced within every kind of question, so that the question
alone does not tell the answer.
"""

from __future__ import annotations

import textwrap
import uuid
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from amif_lib.datasets.phantom_canvas import KINDS_OF, LABELS

if TYPE_CHECKING:
    from amif_lib.datasets.phantom import Case

REGION = {"xr_chest": "chest", "ct_chest": "chest", "ct_abdomen": "abdomen", "ct_head": "head", "mr_brain": "head"}
MODALITY = {"xr_chest": "x-ray", "ct_chest": "CT", "ct_abdomen": "CT", "ct_head": "CT", "mr_brain": "MRI"}
ORGAN_FIELD = {"chest": "CHEST", "abdomen": "ABD", "head": "HEAD"}
HEDGES = ("", "", "", "", "Likely ", "Possible ", "Findings suggest ", "Findings are concerning for ")

# {size}: severity, {side}, {site}, {number}
POSITIVE = {
    "nodule": ("{size} nodule in the {side} {site}", "rounded opacity in the {side} {site}, a {size} nodule",
               "{size} {side} pulmonary nodule"),
    "nodules": ("{number} nodules in the {side} lung", "{number} rounded {side} pulmonary nodules"),
    "consolidation": ("{size} consolidation in the {side} {site}", "{size} airspace opacity in the {side} {site}",
                      "{side} consolidation concerning for pneumonia"),
    "pleural effusion": ("{size} {side} pleural effusion", "{side} pleural effusion, {size} in size"),
    "pneumothorax": ("{size} {side} pneumothorax", "{side} pneumothorax, {size}"),
    "cardiomegaly": ("enlarged heart, {size} cardiomegaly", "the cardiac silhouette is enlarged", "{size} cardiomegaly"),
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
}  # fmt: skip
NEGATIVE = {
    "nodule": ("No pulmonary nodule.", "No nodule or mass is seen."),
    "consolidation": ("No focal consolidation.", "The lungs are clear.", "No evidence of pneumonia."),
    "pleural effusion": ("No pleural effusion.", "There is no pleural effusion.", "The costophrenic angles are sharp."),
    "pneumothorax": ("No pneumothorax.", "There is no evidence of pneumothorax."),
    "cardiomegaly": ("The heart is normal in size.", "Heart size is normal.", "Cardiac silhouette is within normal limits."),
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


# --- reports -------------------------------------------------------------------------------------------------------


def procedure(case: Case) -> str:
    """The examination as the report and the metadata name it."""
    if case.study == "xr_chest":
        return "CHEST (PA AND LAT)" if "lateral" in case.views else "CHEST (SINGLE VIEW)"
    return f"{MODALITY[case.study]} {REGION[case.study]}".upper()


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _state(case: Case, kind: str, rng: np.random.Generator) -> str:
    """A phrase that states a finding, without capital and full stop."""
    entries = [f for f in case.findings if f["kind"] == kind]
    first = entries[0]
    template = _choose(rng, POSITIVE[f"{kind}s" if len(entries) > 1 else kind])
    side = first["side"]
    return template.format(size=first["severity"], side=side, site=first["site"] or "lung", number=NUMBERS[len(entries)],
                           away={"left": "right", "right": "left", "": ""}[side])  # fmt: skip


def _sentence(phrase: str) -> str:
    return phrase[0].upper() + phrase[1:] + "."


def _technique(case: Case, rng: np.random.Generator) -> str:
    region, views = REGION[case.study], [v for v in ("frontal", "lateral", "axial", "coronal", "sagittal") if v in case.views]
    listed = " and ".join([", ".join(views[:-1]), views[-1]] if len(views) > 1 else views).capitalize()
    image = {"xr_chest": "radiograph", "mr_brain": f"T{2 if case.anatomy['t2'] > 0.5 else 1} weighted MR image"}
    noun = image.get(case.study, "CT image") + ("s" if len(views) > 1 else "")
    return _choose(rng, (f"{listed} {noun} of the {region}.", f"{listed} {noun} of the {region} {'were' if len(views) > 1 else 'was'} "
                         "obtained."))  # fmt: skip


def report(case: Case, rng: np.random.Generator) -> str:
    """A report in MIMIC-CXR's form: headers in capitals, lines of at most 79 characters, sometimes without sections."""
    present = case.kinds()
    findings = [_technique(case, rng)]
    for kind in present:
        phrase = _state(case, kind, rng)
        hedge = "" if phrase.startswith(("the ", "midline")) else _choose(rng, HEDGES)
        findings.append(_sentence(hedge + phrase))
    absent = [kind for kind in KINDS_OF[case.study] if kind not in present]
    if {"pleural effusion", "pneumothorax"} <= set(absent) and rng.random() < 0.4:
        findings.append("No pleural effusion or pneumothorax.")
        absent = [kind for kind in absent if kind not in ("pleural effusion", "pneumothorax")]
    denied = [str(kind) for kind in rng.permutation(absent) if rng.random() < 0.75]
    findings += [_choose(rng, NEGATIVE[kind]) for kind in denied]
    if present:
        impression = " ".join(_sentence(_state(case, kind, rng)) for kind in present)
    else:
        impression = _choose(rng, NORMAL[REGION[case.study]])
    style = rng.random()
    parts = {"INDICATION": "___ year old patient, synthetic.", "COMPARISON": _choose(rng, ("None.", "___.")),
             "FINDINGS": " ".join(findings), "IMPRESSION": impression}  # fmt: skip
    if style < 0.06:  # the impression alone
        parts = {"INDICATION": parts["INDICATION"], "IMPRESSION": f"{findings[0]} {impression}"}
    elif style < 0.1:
        parts = {"FINDINGS AND IMPRESSION": " ".join(findings)}
    head = " " * 33 + "FINAL REPORT\n"
    if style > 0.96:  # no headers at all
        return head + textwrap.fill(" ".join([*findings, impression]), 79, initial_indent=" ", subsequent_indent=" ") + "\n"
    body = [f" EXAMINATION:  {procedure(case)}"]
    body += [textwrap.fill(f"{name}:  {text}", 79, initial_indent=" ", subsequent_indent=" ") for name, text in parts.items()]
    return head + "\n \n".join(body) + "\n"


# --- questions -----------------------------------------------------------------------------------------------------

# (question type, key): share of the set. Presence questions take what others leave.
SHARES = {
    ("MODALITY", "open"): 0.06, ("MODALITY", "closed"): 0.04, ("MODALITY", "weighting"): 0.02, ("PLANE", "open"): 0.06,
    ("PLANE", "closed"): 0.04, ("ORGAN", "open"): 0.05, ("ORGAN", "closed"): 0.02, ("POS", "side"): 0.08, ("POS", "closed"): 0.06,
    ("POS", "choice"): 0.03, ("POS", "site"): 0.06, ("COUNT", "open"): 0.04, ("ABN", "open"): 0.09, ("ABN", "closed"): 0.07,
}  # fmt: skip
NOUN = {"cardiomegaly": "cardiomegaly", "ascites": "ascites", "hydrocephalus": "hydrocephalus", "midline shift": "midline shift",
        "infarct": "an infarct", "pneumothorax": "a pneumothorax", "pleural effusion": "a pleural effusion",
        "hemorrhage": "a hemorrhage"}  # fmt: skip
SIDED = ("nodule", "consolidation", "pleural effusion", "pneumothorax", "kidney stone", "renal mass", "infarct", "mass",
         "hemorrhage")  # fmt: skip


def _noun(kind: str) -> str:
    return NOUN.get(kind, f"a {kind}")


def _candidates(case: Case) -> list[tuple[str, str, str, str | int, tuple[str, ...], list[str]]]:
    """All questions on one image: type, share key, balance key, answer, wordings, and the labels they ask about."""
    view, region, modality = case.views[0], REGION[case.study], MODALITY[case.study]
    out: list[tuple[str, str, str, str | int, tuple[str, ...], list[str]]] = []

    def ask(kind: str, share: str, balance: str, answer: str | int | bool, *wordings: str, about: tuple[str, ...] = ()) -> None:
        if isinstance(answer, bool):
            answer = "Yes" if answer else "No"
        out.append((kind, share, balance, answer, wordings, [name for name in about if name in LABELS]))

    ask("MODALITY", "open", "", modality, "What imaging modality was used?", "What type of imaging is this?",
        "How was this image taken?")  # fmt: skip
    for name in ("x-ray", "CT", "MRI"):
        article = "an" if name != "CT" else "a"
        ask("MODALITY", "closed", name, name == modality, f"Is this {article} {name}?", f"Was {article} {name} obtained?")
    if case.study == "mr_brain":
        for number in (1, 2):
            ask("MODALITY", "weighting", f"T{number}", (case.anatomy["t2"] > 0.5) == (number == 2),
                f"Is this a T{number} weighted image?", f"Is the image T{number} weighted?")  # fmt: skip
    ask("PLANE", "open", "", view, "What plane is this image in?", "In which plane was the image taken?", "Which view is shown?")
    for name in ("frontal", "lateral", "axial", "coronal", "sagittal"):
        ask("PLANE", "closed", name, name == view, f"Is this a {name} view?".replace("a axial", "an axial"),
            f"Is the plane of the image {name}?")  # fmt: skip
    ask("ORGAN", "open", "", region, "What part of the body is shown?", "Which body region is imaged?")
    for name in ("chest", "abdomen", "head"):
        ask("ORGAN", "closed", name, name == region, f"Is this an image of the {name}?", f"Does the image show the {name}?")

    present = case.kinds(view)
    abnormal = bool(case.findings)
    if abnormal == bool(present):  # a finding that this view cannot show must not be asked about
        ask("ABN", "closed", "normal", not abnormal, "Is this a normal study?", "Does the image look normal?")
        ask("ABN", "closed", "abnormal", abnormal, "Is there an abnormality?", "Is any abnormality seen in the image?")
    main = [kind for kind in present if kind != "midline shift"]
    if len(main) == 1:
        ask("ABN", "open", "", main[0], "What abnormality is seen?", "What is the main finding in this image?",
            about=(main[0],))  # fmt: skip
    asked = (*KINDS_OF[case.study], *(("midline shift",) if region == "head" and view != "sagittal" else ()))
    for kind in asked:
        if kind in present or kind not in case.kinds():
            if view != "lateral" or kind != "pneumothorax":
                ask("PRES", "presence", kind, kind in present, f"Is there {_noun(kind)}?", f"Is {_noun(kind)} present?",
                    f"Does the image show {_noun(kind)}?", about=(kind,))  # fmt: skip
    for kind in present:
        entries = [f for f in case.findings if f["kind"] == kind]
        side, site = entries[0]["side"], entries[0]["site"]
        plural = f"{kind}s are" if len(entries) > 1 else f"{kind} is"
        if kind in ("nodule", "liver lesion"):
            ask("COUNT", "open", kind, len(entries), f"How many {kind}s are there?", f"What is the number of {kind}s?", about=(kind,))
        if kind in SIDED and view in ("frontal", "axial", "coronal"):
            ask("POS", "side", kind, side, f"Which side is the {kind} on?", f"On which side of the body is the {kind}?", about=(kind,))
            ask("POS", "choice", kind, side, f"Is the {kind} on the left or on the right?", about=(kind,))
            for name in ("left", "right"):
                ask("POS", "closed", f"{kind} {name}", side == name, f"Is the {kind} on the {name}?",
                    f"Is the {kind} located on the {name} side?", about=(kind,))  # fmt: skip
        if site and (view in ("frontal", "lateral") or (region == "head" and view != "coronal")):
            named = f"{side} {site}" if view in ("frontal", "axial") else site
            ask("POS", "site", kind, named, f"Where is the {kind}?", f"Where {plural.split()[-1]} the {kind} located?", about=(kind,))
    return out


def questions(cases: list[tuple[str, Case]], number: int, split: str, start: int,
              rng: np.random.Generator) -> list[tuple[dict[str, Any], list[str]]]:  # fmt: skip
    """At most `number` VQA-RAD records on `(image name, case)` pairs, each with the mask labels that it asks about.

    Yes and no are equally frequent within every balance key; open answers are drawn in turn. `split` is train or test;
    record numbers begin at `start`.
    """
    pools: dict[tuple[str, str], dict[str, dict[str, list]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for name, case in cases:
        for kind, share, balance, answer, wordings, about in _candidates(case):
            item = (name, case, kind, share, answer, wordings, about)
            pools[kind, share][balance][str(answer)].append(item)
    chosen: list[tuple] = []
    for (kind, share), by_balance in pools.items():
        if kind != "PRES":
            chosen += _take(by_balance, round(SHARES[kind, share] * number), rng)
    chosen += _take(pools["PRES", "presence"], number - len(chosen), rng)
    order = rng.permutation(len(chosen))
    return [_record(chosen[i], start + place, split, rng) for place, i in enumerate(order)]


def _take(by_balance: dict[str, dict[str, list]], number: int, rng: np.random.Generator) -> list[tuple]:
    """Draw in turn over balance keys and, within a key, over answers; a yes/no key stops when either answer runs out."""
    streams = []
    for by_answer in by_balance.values():
        lists = {answer: [items[i] for i in rng.permutation(len(items))] for answer, items in by_answer.items()}
        if set(lists) & {"Yes", "No"}:
            depth = min(len(lists.get("Yes", [])), len(lists.get("No", [])))
            turns = [[lists["Yes"][i], lists["No"][i]] for i in range(depth)]
        else:
            depth = max(map(len, lists.values()))
            turns = [[items[i]] for i in range(depth) for items in lists.values() if i < len(items)]
        streams.append(turns)
    out: list[tuple] = []
    for turn in range(max(map(len, streams), default=0)):
        for turns in streams:
            if turn < len(turns) and len(out) + len(turns[turn]) <= number:
                out += turns[turn]
    return out


def _record(item: tuple, number: int, split: str, rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """A record with VQA-RAD's fourteen keys; yes/no and either/or questions are CLOSED, numbers are integers."""
    name, case, kind, share, answer, wordings, about = item
    first, second = (int(i) for i in (*rng.permutation(len(wordings)), 0)[:2])
    prefix = "test_" if split == "test" else ""
    para = len(wordings) > 1 and rng.random() < 0.3
    closed = answer in ("Yes", "No") or share == "choice"
    record = {
        "qid": str(number) if number == 0 else number,
        "phrase_type": prefix + ("para" if para else "freeform"),
        "qid_linked_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        "image_case_url": f"phantom://{name.removesuffix('.jpg')}",
        "image_name": name,
        "image_organ": ORGAN_FIELD[REGION[case.study]],
        "evaluation": "not evaluated",
        "question": wordings[first],
        "question_rephrase": "NULL" if len(wordings) == 1 else wordings[second],
        "question_relation": "NULL" if len(wordings) == 1 else "strict agreement",
        "question_frame": "NULL",
        "question_type": kind,
        "answer": answer,
        "answer_type": "CLOSED" if closed else "OPEN",
    }
    return record, about
