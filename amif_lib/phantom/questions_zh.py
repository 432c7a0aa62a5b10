"""Chinese wordings of the phantom's questions, for the SLAKE layout: a small set of templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amif_lib.phantom.questions import Candidate

# (question type, key): share of the Chinese questions. Presence questions take what others leave.
SHARES = {
    ("MODALITY", "open"): 0.12,
    ("MODALITY", "closed"): 0.1,
    ("PLANE", "open"): 0.12,
    ("ORGAN", "open"): 0.12,
    ("POS", "side"): 0.12,
    ("COUNT", "open"): 0.06,
    ("ABN", "open"): 0.1,
    ("ABN", "closed"): 0.1,
}
WORDS = {
    "x-ray": "X光",
    "CT": "CT",
    "MRI": "核磁共振",
    "frontal": "正位",
    "lateral": "侧位",
    "axial": "横断面",
    "coronal": "冠状面",
    "sagittal": "矢状面",
    "chest": "胸部",
    "abdomen": "腹部",
    "head": "头部",
    "left": "左侧",
    "right": "右侧",
    "nodule": "结节",
    "consolidation": "实变",
    "pleural effusion": "胸腔积液",
    "pneumothorax": "气胸",
    "cardiomegaly": "心脏增大",
    "liver lesion": "肝脏病变",
    "kidney stone": "肾结石",
    "renal mass": "肾脏肿块",
    "ascites": "腹水",
    "hydrocephalus": "脑积水",
    "infarct": "梗死",
    "mass": "肿块",
    "hemorrhage": "出血",
    "midline shift": "中线移位",
}
# Wordings, and the pair of answers where the question is closed; in Chinese the pair follows the wording.
TEMPLATES = {
    ("MODALITY", "open"): (("这张图片的成像方式是什么?",), ()),
    ("MODALITY", "closed"): (("这是一张{}图像吗?",), ("是", "不是")),
    ("PLANE", "open"): (("这张图片的扫描平面是什么?", "图片是哪个平面?"), ()),
    ("ORGAN", "open"): (("图片显示的是身体的哪个部位?",), ()),
    ("POS", "side"): (("{}在哪一侧?", "{}在患者身体的哪一侧?"), ()),
    ("COUNT", "open"): (("图中有几个{}?",), ()),
    ("ABN", "open"): (("图中有什么异常?", "图片中的主要病变是什么?"), ()),
    ("ABN", "closed"): (("这张图片{}吗?",), ("是", "否")),
    ("PRES", "presence"): (("图中有{}吗?",), ("有", "没有")),
    ("PRES", "contains"): (("图片中包含{}吗?",), ("包含", "不包含")),
}


def phrase(item: Candidate, turn: int) -> tuple[str, str]:
    """A candidate's question and answer in Chinese; `turn` picks among wordings."""
    share = "contains" if item.share == "presence" and turn % 2 else item.share
    wordings, pair = TEMPLATES[item.kind, share]
    if item.kind == "ABN" and item.share == "closed":
        named = {"normal": "正常", "abnormal": "有异常"}[item.balance]
    else:
        named = WORDS.get(item.balance, "")
    answer = str(item.answer)
    said = pair[answer == "No"] if pair else WORDS.get(answer, answer)
    return wordings[turn % len(wordings)].format(named), said
