"""Questions about cases, in English and Chinese.

Yes and no are equally frequent within every kind of question, and open answers are drawn in turn, so that the question
alone does not tell the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple

import numpy as np

from amif_lib.phantom.cases import Case
from amif_lib.phantom.drawing import KINDS_OF, LABELS, visible
from amif_lib.phantom.texts import MODALITY, REGION

NOUN = {kind: kind for kind in ("cardiomegaly", "hydrocephalus")} | {"infarct": "an infarct"}
# Question type and key: share of the set. Presence questions take what the others leave.
SHARES = {
    "MODALITY/open": 0.08, "MODALITY/closed": 0.08, "PLANE/open": 0.08, "PLANE/closed": 0.06, "ORGAN/open": 0.07,
    "ORGAN/closed": 0.04, "POS/side": 0.08, "POS/closed": 0.05, "POS/choice": 0.03, "POS/site": 0.05,
    "COUNT/open": 0.04, "ABN/open": 0.1, "ABN/closed": 0.06,
}  # fmt: skip
SHARES_ZH = {
    "MODALITY/open": 0.12, "MODALITY/closed": 0.1, "PLANE/open": 0.12, "ORGAN/open": 0.12, "POS/side": 0.12,
    "COUNT/open": 0.06, "ABN/open": 0.1, "ABN/closed": 0.1,
}  # fmt: skip
WORDS_ZH = {
    "x-ray": "X光", "CT": "CT", "MRI": "核磁共振", "frontal": "正位", "lateral": "侧位", "axial": "横断面",
    "chest": "胸部", "head": "头部", "left": "左侧", "right": "右侧", "normal": "正常", "abnormal": "有异常",
    "nodule": "结节", "consolidation": "实变", "pleural effusion": "胸腔积液", "pneumothorax": "气胸", "mass": "肿块",
    "cardiomegaly": "心脏增大", "hydrocephalus": "脑积水", "infarct": "梗死", "hemorrhage": "出血",
}  # fmt: skip
# Wordings, each with its answers to yes and no where the question is closed.
TEMPLATES_ZH = {
    "MODALITY/open": (("这张图片的成像方式是什么?", ()),),
    "MODALITY/closed": (("这是一张{}图像吗?", ("是", "不是")),),
    "PLANE/open": (("这张图片的扫描平面是什么?", ()), ("图片是哪个平面?", ())),
    "ORGAN/open": (("图片显示的是身体的哪个部位?", ()),),
    "POS/side": (("{}在哪一侧?", ()), ("{}在患者身体的哪一侧?", ())),
    "COUNT/open": (("图中有几个{}?", ()),),
    "ABN/open": (("图中有什么异常?", ()), ("图片中的主要病变是什么?", ())),
    "ABN/closed": (("这张图片{}吗?", ("是", "否")),),
    "PRES/presence": (("图中有{}吗?", ("有", "没有")), ("图片中包含{}吗?", ("包含", "不包含"))),
}


class Candidate(NamedTuple):
    """A question that could be asked about an image."""

    image: str
    case: Case
    key: str  # VQA-RAD's question type and the key of the share, as in SHARES
    balance: str  # answers are balanced among candidates of one key and balance
    answer: str | int
    wordings: tuple[str, ...]
    about: tuple[str, ...]  # labels of the region mask that the answer depends on

    @property
    def kind(self) -> str:
        return self.key.split("/")[0]

    @property
    def closed(self) -> bool:
        """As VQA-RAD's annotators decided: either/or questions are closed, too."""
        return self.answer in ("Yes", "No") or self.key == "POS/choice"


SplitCases = list[tuple[str, Case]]  # image ids and what is seen on them
Once = Callable[[Candidate], Hashable] | None


def in_chinese(item: Candidate, turn: int) -> tuple[str, str]:
    """A candidate's question and answer in Chinese; `turn` picks among wordings."""
    wordings = TEMPLATES_ZH[item.key]
    wording, pair = wordings[turn % len(wordings)]
    answer = str(item.answer)
    said = pair[answer == "No"] if pair else WORDS_ZH.get(answer, answer)
    return wording.format(WORDS_ZH.get(item.balance, "")), said


def candidates(image: str, case: Case) -> list[Candidate]:
    """All questions on one image."""
    out: list[Candidate] = []

    def ask(key: str, balance: str, answer: str | int | bool, *wordings: str, about: str = "") -> None:
        said = ("Yes" if answer else "No") if isinstance(answer, bool) else answer
        out.append(Candidate(image, case, key, balance, said, wordings, (about,) if about in LABELS else ()))

    view, region, modality = case.views[0], REGION[case.study], MODALITY[case.study]
    ask("MODALITY/open", "", modality, "What imaging modality was used?", "What type of imaging is this?")
    for name, noun in (("x-ray", "an x-ray"), ("CT", "a CT"), ("MRI", "an MRI")):
        ask("MODALITY/closed", name, name == modality, f"Is this {noun}?", f"Was {noun} obtained?")
    ask("PLANE/open", "", view, "What plane is this image in?", "Which view is shown?")
    for name in ("a frontal", "a lateral", "an axial"):
        plane = name.split()[1]
        ask("PLANE/closed", plane, plane == view, f"Is this {name} view?", f"Is the plane of the image {plane}?")
    ask("ORGAN/open", "", region, "What part of the body is shown?", "Which body region is imaged?")
    for name in ("chest", "head"):
        wordings = (f"Is this an image of the {name}?", f"Does the image show the {name}?")
        ask("ORGAN/closed", name, name == region, *wordings)
    present = case.kinds(view)
    if bool(case.findings) == bool(present):  # what this view cannot show must not be asked about
        ask("ABN/closed", "normal", not present, "Is this a normal study?", "Does the image look normal?")
        ask("ABN/closed", "abnormal", bool(present), "Is there an abnormality?", "Is any abnormality seen?")
    if len(present) == 1:
        ask("ABN/open", "", present[0], "What abnormality is seen?", "What is the main finding?", about=present[0])
    for kind in KINDS_OF[case.study]:
        if visible(kind, view):
            noun = NOUN.get(kind, f"a {kind}")
            ask("PRES/presence", kind, kind in present, f"Is there {noun}?", f"Is {noun} present?", about=kind)
    for kind in present:
        entries = [finding for finding in case.findings if finding["kind"] == kind]
        side, site = entries[0]["side"], entries[0]["site"]
        if kind == "nodule":
            wordings = (f"How many {kind}s are there?", f"What is the number of {kind}s?")
            ask("COUNT/open", kind, len(entries), *wordings, about=kind)
        if side and view != "lateral":
            ask("POS/side", kind, side, f"Which side is the {kind} on?", f"On which side is the {kind}?", about=kind)
            ask("POS/choice", kind, side, f"Is the {kind} on the left or on the right?", about=kind)
            for name in ("left", "right"):
                wordings = (f"Is the {kind} on the {name}?", f"Is the {kind} located on the {name} side?")
                ask("POS/closed", f"{kind} {name}", side == name, *wordings, about=kind)
        if site:
            named = site if view == "lateral" else f"{side} {site}"
            ask("POS/site", kind, named, f"Where is the {kind}?", f"Where is the {kind} located?", about=kind)
    return out


def draw(
    cases: SplitCases, number: int, rng: np.random.Generator, shares: Mapping[str, float] = SHARES, once: Once = None
) -> list[Candidate]:
    """At most `number` questions on `(image name, case)` pairs, shuffled, in the given shares, balanced by answer.

    Presence questions take what the shares leave. With `once`, no two questions have the same value of it.
    """
    pools: dict[str, dict[str, dict[str, list]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for name, case in cases:
        for item in candidates(name, case):
            pools[item.key][item.balance][str(item.answer)].append(item)
    chosen: list[Candidate] = []
    taken: set[Hashable] = set()
    wanted = {key: round(share * number) for key, share in shares.items()}
    if sum(shares.values()) < 0.999:
        wanted["PRES/presence"] = number  # as many as there is room for
    for key, most in wanted.items():
        chosen += _take(pools[key], min(most, number - len(chosen)), rng, once, taken)
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _take(
    pool: dict[str, dict[str, list]], number: int, rng: np.random.Generator, once: Once, taken: set[Hashable]
) -> list[Candidate]:
    """Draw in turn over balance keys and, in a key, over answers.

    A yes/no key stops when either answer runs out, an open one when all answers but the commonest have.
    """
    streams = []
    for by_answer in pool.values():
        lists = [[items[i] for i in rng.permutation(len(items))] for items in by_answer.values()]
        if set(by_answer) & {"Yes", "No"}:  # a yes with a no
            turns = [list(pair) for pair in zip(*lists, strict=False)] if len(lists) == 2 else []
        else:
            depth = sorted(map(len, lists))[-2:][0]
            rounds = [[items[i] for items in lists if i < len(items)] for i in range(depth)]
            turns = [[items[i]] for items in rounds for i in rng.permutation(len(items))]
        streams.append(turns)
    out: list[Candidate] = []
    for turn in range(max(map(len, streams), default=0)):
        for items in (turns[turn] for turns in streams if turn < len(turns)):
            keys = {once(item) for item in items} if once else set()
            if len(out) + len(items) <= number and not (once and (keys & taken or len(keys) < len(items))):
                taken |= keys
                out += items
    return out
