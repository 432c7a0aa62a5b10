"""Draws the phantom's questions from latent cases, and writes them as VQA-RAD records.

Yes and no are equally frequent within every kind of question, and open answers are drawn in turn, so that the question
alone does not tell the answer.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from amif_lib.phantom.canvas import KINDS_OF, LABELS, visible
from amif_lib.phantom.reports import MODALITY, REGION

if TYPE_CHECKING:
    from amif_lib.phantom.cases import Case

ORGAN_FIELD = {"chest": "CHEST", "abdomen": "ABD", "head": "HEAD"}
# (question type, key): share of the set. Presence questions take what others leave.
SHARES = {
    ("MODALITY", "open"): 0.08,
    ("MODALITY", "closed"): 0.06,
    ("MODALITY", "weighting"): 0.02,
    ("PLANE", "open"): 0.08,
    ("PLANE", "closed"): 0.06,
    ("ORGAN", "open"): 0.07,
    ("ORGAN", "closed"): 0.04,
    ("POS", "side"): 0.08,
    ("POS", "closed"): 0.05,
    ("POS", "choice"): 0.03,
    ("POS", "site"): 0.05,
    ("COUNT", "open"): 0.04,
    ("ABN", "open"): 0.1,
    ("ABN", "closed"): 0.06,
}
NOUN = {
    "cardiomegaly": "cardiomegaly",
    "ascites": "ascites",
    "hydrocephalus": "hydrocephalus",
    "midline shift": "midline shift",
    "infarct": "an infarct",
    "pneumothorax": "a pneumothorax",
    "pleural effusion": "a pleural effusion",
    "hemorrhage": "a hemorrhage",
}
SIDED = (
    "nodule",
    "consolidation",
    "pleural effusion",
    "pneumothorax",
    "kidney stone",
    "renal mass",
    "infarct",
    "mass",
    "hemorrhage",
)


class Candidate(NamedTuple):
    """A question that could be asked about an image."""

    image: str
    case: Case
    kind: str  # VQA-RAD's question type
    share: str  # with `kind` the key of SHARES
    balance: str  # answers are balanced among candidates of one balance key
    answer: str | int
    wordings: tuple[str, ...]
    about: tuple[str, ...]  # labels of the region mask that the answer depends on


def _noun(kind: str) -> str:
    return NOUN.get(kind, f"a {kind}")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aMx" else f"a {name}"


def _candidates(image: str, case: Case) -> list[Candidate]:
    """All questions on one image."""
    out: list[Candidate] = []

    def ask(key: str, balance: str, answer: str | int | bool, *wordings: str, about: str = "") -> None:
        kind, share = key.split("/")
        said = ("Yes" if answer else "No") if isinstance(answer, bool) else answer
        out.append(Candidate(image, case, kind, share, balance, said, wordings, (about,) if about in LABELS else ()))

    _ask_about_image(case, ask)
    _ask_about_findings(case, ask)
    return out


def _ask_about_image(case: Case, ask: Callable[..., None]) -> None:
    view, region, modality = case.views[0], REGION[case.study], MODALITY[case.study]
    ask("MODALITY/open", "", modality, "What imaging modality was used?", "What type of imaging is this?")
    for name in ("x-ray", "CT", "MRI"):
        noun = _article(name)
        ask("MODALITY/closed", name, name == modality, f"Is this {noun}?", f"Was {noun} obtained?")
    if case.study == "mr_brain":
        for name, right in (("T1", case.anatomy["t2"] <= 0.5), ("T2", case.anatomy["t2"] > 0.5)):
            ask(
                "MODALITY/weighting", name, right, f"Is this a {name} weighted image?", f"Is the image {name} weighted?"
            )
    ask("PLANE/open", "", view, "What plane is this image in?", "Which view is shown?")
    for name in ("frontal", "lateral", "axial", "coronal", "sagittal"):
        ask("PLANE/closed", name, name == view, f"Is this {_article(name)} view?", f"Is the plane of the image {name}?")
    ask("ORGAN/open", "", region, "What part of the body is shown?", "Which body region is imaged?")
    for name in ("chest", "abdomen", "head"):
        ask(
            "ORGAN/closed", name, name == region, f"Is this an image of the {name}?", f"Does the image show the {name}?"
        )


def _ask_about_findings(case: Case, ask: Callable[..., None]) -> None:
    view, present = case.views[0], case.kinds(case.views[0])
    if bool(case.findings) == bool(present):  # what this view cannot show must not be asked about
        ask("ABN/closed", "normal", not present, "Is this a normal study?", "Does the image look normal?")
        ask("ABN/closed", "abnormal", bool(present), "Is there an abnormality?", "Is any abnormality seen?")
    main = [kind for kind in present if kind != "midline shift"]
    if len(main) == 1:
        ask("ABN/open", "", main[0], "What abnormality is seen?", "What is the main finding?", about=main[0])
    for kind in (*KINDS_OF[case.study], *(("midline shift",) if REGION[case.study] == "head" else ())):
        if visible(kind, view):
            wordings = (f"Is there {_noun(kind)}?", f"Is {_noun(kind)} present?")
            ask("PRES/presence", kind, kind in present, *wordings, about=kind)
    for kind in present:
        entries = [f for f in case.findings if f["kind"] == kind]
        side, site = entries[0]["side"], entries[0]["site"]
        if kind in ("nodule", "liver lesion"):
            ask(
                "COUNT/open",
                kind,
                len(entries),
                f"How many {kind}s are there?",
                f"What is the number of {kind}s?",
                about=kind,
            )
        if kind in SIDED and view in ("frontal", "axial", "coronal"):
            ask("POS/side", kind, side, f"Which side is the {kind} on?", f"On which side is the {kind}?", about=kind)
            ask("POS/choice", kind, side, f"Is the {kind} on the left or on the right?", about=kind)
            for name in ("left", "right"):
                wordings = (f"Is the {kind} on the {name}?", f"Is the {kind} located on the {name} side?")
                ask("POS/closed", f"{kind} {name}", side == name, *wordings, about=kind)
        if site and view != "coronal":  # a coronal slice does not show which lobe it lies in
            named = f"{side} {site}" if view in ("frontal", "axial") else site
            ask("POS/site", kind, named, f"Where is the {kind}?", f"Where is the {kind} located?", about=kind)


def questions(
    cases: list[tuple[str, Case]], number: int, split: str, start: int, rng: np.random.Generator
) -> list[tuple[dict[str, Any], list[str]]]:
    """At most `number` VQA-RAD records on `(image name, case)` pairs, each with the mask labels that it asks about.

    Yes and no are equally frequent within every balance key; open answers are drawn in turn. `split` is train or test;
    record numbers begin at `start`.
    """
    return [_record(item, start + place, split, rng) for place, item in enumerate(draw(cases, number, rng))]


def draw(
    cases: list[tuple[str, Case]],
    number: int,
    rng: np.random.Generator,
    shares: Mapping[tuple[str, str], float] = SHARES,
    once: Callable[[Candidate], Hashable] | None = None,
) -> list[Candidate]:
    """At most `number` questions on `(image name, case)` pairs, shuffled, in the given shares; balanced as `questions`.

    Presence questions take what the shares leave. With `once`, no two questions have the same value of it.
    """
    pools: dict[tuple[str, str], dict[str, dict[str, list]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for name, case in cases:
        for item in _candidates(name, case):
            pools[item.kind, item.share][item.balance][str(item.answer)].append(item)
    chosen: list[Candidate] = []
    taken: set[Hashable] = set()
    for (kind, share), by_balance in pools.items():
        if kind != "PRES":
            chosen += _take(by_balance, round(shares.get((kind, share), 0) * number), rng, once, taken)
    if sum(shares.values()) < 1:
        chosen += _take(pools["PRES", "presence"], number - len(chosen), rng, once, taken)
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _take(
    by_balance: dict[str, dict[str, list]],
    number: int,
    rng: np.random.Generator,
    once: Callable[[Candidate], Hashable] | None,
    taken: set[Hashable],
) -> list[Candidate]:
    """Draw in turn over balance keys and, in a key, over answers.

    A yes/no key stops when either answer runs out, an open one when all answers but the commonest have.
    """
    streams = []
    for by_answer in by_balance.values():
        lists = {answer: [items[i] for i in rng.permutation(len(items))] for answer, items in by_answer.items()}
        if set(lists) & {"Yes", "No"}:
            depth = min(len(lists.get("Yes", [])), len(lists.get("No", [])))
            turns = [[lists["Yes"][i], lists["No"][i]] for i in range(depth)]
        else:
            depth = sorted(map(len, lists.values()))[-2:][0]
            rounds = [[items[i] for items in lists.values() if i < len(items)] for i in range(depth)]
            turns = [[items[i]] for items in rounds for i in rng.permutation(len(items))]
        streams.append(turns)
    out: list[Candidate] = []
    for turn in range(max(map(len, streams), default=0)):
        for turns in streams:
            if turn < len(turns) and len(out) + len(turns[turn]) <= number:
                keys = {once(item) for item in turns[turn]} if once else set()
                if once and (keys & taken or len(keys) < len(turns[turn])):
                    continue
                taken |= keys
                out += turns[turn]
    return out


def _record(item: Candidate, number: int, split: str, rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """A record with VQA-RAD's fourteen keys; yes/no and either/or questions are CLOSED, numbers are integers."""
    name, wordings, answer = item.image, item.wordings, item.answer
    first, second = (int(i) for i in (*rng.permutation(len(wordings)), 0)[:2])
    prefix = "test_" if split == "test" else ""
    para = len(wordings) > 1 and rng.random() < 0.3
    closed = answer in ("Yes", "No") or item.share == "choice"
    record = {
        "qid": str(number) if number == 0 else number,
        "phrase_type": prefix + ("para" if para else "freeform"),
        "qid_linked_id": str(uuid.UUID(bytes=rng.bytes(16), version=4)),
        "image_case_url": f"phantom://{name.removesuffix('.jpg')}",
        "image_name": name,
        "image_organ": ORGAN_FIELD[REGION[item.case.study]],
        "evaluation": "not evaluated",
        "question": wordings[first],
        "question_rephrase": "NULL" if len(wordings) == 1 else wordings[second],
        "question_relation": "NULL" if len(wordings) == 1 else "strict agreement",
        "question_frame": "NULL",
        "question_type": item.kind,
        "answer": answer,
        "answer_type": "CLOSED" if closed else "OPEN",
    }
    return record, list(item.about)
