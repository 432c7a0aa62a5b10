"""Phantom cases: the latents of a synthetic study, and the pictures and ground truth that follow from them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from amif_lib.phantom import drawing as phantom_drawing
from amif_lib.phantom.canvas import FINDINGS, KINDS_OF, LABELS, visible

STUDIES = tuple(KINDS_OF)
SHARES = {  # how often a study type is drawn: pre-training, questions
    "mimic_cxr": (0.46, 0.1, 0.16, 0.08, 0.2),
    "vqa_rad": (0.34, 0.1, 0.22, 0.1, 0.24),
}
NORMAL = 0.35  # share of studies without a finding
SUBTLE = 0.15  # share of findings that are small and faint
ZONES = {"upper zone": -0.42, "mid zone": -0.04, "lower zone": 0.26}
LOBES = {"frontal lobe": -0.5, "parietal lobe": 0.08, "occipital lobe": 0.56}


@dataclass(frozen=True)
class Case:
    """One patient's study: what the pictures show and the texts say."""

    index: int
    study: str
    views: tuple[str, ...]
    anatomy: dict[str, float]
    findings: list[dict[str, Any]] = field(default_factory=list)

    def kinds(self, view: str = "") -> list[str]:
        """The kinds of finding, in drawing order; with `view`, only those that can be seen in it."""
        found = list(dict.fromkeys(f["kind"] for f in self.findings))
        return [kind for kind in found if not view or visible(kind, view)]


def draw_case(index: int, kind: str, rng: np.random.Generator) -> Case:
    """A latent case for a set of `kind` (`mimic_cxr`: studies of several views; `vqa_rad`: single images)."""
    study = str(rng.choice(STUDIES, p=SHARES[kind]))
    views = ("axial",)
    if study == "xr_chest":
        both = kind == "mimic_cxr" and rng.random() < 0.8
        views = (
            ("frontal", "lateral")
            if both
            else ("frontal" if kind == "mimic_cxr" or rng.random() < 0.66 else "lateral",)
        )
    elif study == "mr_brain":
        number = 1 if kind == "vqa_rad" else int(rng.choice([1, 2, 3], p=[0.15, 0.35, 0.5]))
        views = tuple(sorted(rng.permutation(["axial", "coronal", "sagittal"])[:number].tolist()))
    anatomy = {
        "width": float(np.clip(rng.normal(1, 0.04), 0.9, 1.06)),
        "heart": float(rng.uniform(0.26, 0.31)),
        "inspiration": float(rng.uniform(-0.05, 0.05)),
        "rib_phase": float(rng.random()),
        "fat": float(rng.uniform(0.06, 0.16)),
        "liver": float(rng.uniform(0.37, 0.43)),
        "kidney": float(rng.uniform(0.115, 0.14)),
        "t2": float(rng.random()),
    }
    findings: list[dict[str, Any]] = []
    if rng.random() >= NORMAL:
        number = int(rng.choice([1, 2, 3], p=[0.74, 0.23, 0.03]))
        for name in rng.permutation(KINDS_OF[study])[:number]:
            findings += _draw_finding(str(name), study, findings, rng)
    return Case(index, study, views, anatomy, findings)


def _draw_finding(
    kind: str, study: str, others: list[dict[str, Any]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """The latents of one finding: one entry, or several where it is multiple or brings another finding with it."""
    side = str(rng.choice(["left", "right"]))
    taken = [f["side"] for f in others if f["side"] and "pneumothorax" in (kind, f["kind"])]
    if taken:  # a collapsed lung would hide what lies in it
        side = "left" if taken[0] == "right" else "right"
    subtle = bool(rng.random() < SUBTLE)

    def between(low: float, high: float, faint: tuple[float, float] | None = None) -> float:
        return float(rng.uniform(*(faint if subtle and faint else (low, high))))

    def entry(**values: Any) -> dict[str, Any]:
        size = values["size"]
        severity = "small" if subtle else ("large" if size > values.pop("large") else "moderate")
        values.pop("large", None)
        return {"kind": kind, "side": side, "site": "", "severity": severity, "contrast": 0.0, **values}

    if kind in ("nodule", "consolidation"):
        number = int(rng.choice([1, 2, 3], p=[0.42, 0.32, 0.26])) if kind == "nodule" else 1
        zones = [str(z) for z in rng.permutation(list(ZONES))[:number]]
        size = (0.1, 0.16, (0.05, 0.08)) if kind == "nodule" else (0.2, 0.3, (0.13, 0.17))
        depths = rng.permutation([-0.24, 0.0, 0.24])
        return [
            entry(
                site=zone if number == 1 and study == "xr_chest" else "",
                x=between(0.3, 0.5),
                y=ZONES[zone] + between(-0.06, 0.06),
                z=float(depths[i]) + between(-0.04, 0.04),
                size=between(*size),
                contrast=between(0.3, 0.45, (0.15, 0.25)),
                large=0.13 if kind == "nodule" else 0.26,
            )
            for i, zone in enumerate(zones)
        ]
    if kind == "pleural effusion":
        return [entry(size=between(0.28, 0.75, (0.14, 0.22)), large=0.52)]
    if kind == "pneumothorax":
        return [entry(size=between(0.25, 0.5, (0.12, 0.18)), large=0.38)]
    if kind == "cardiomegaly":
        return [entry(side="", size=between(0.14, 0.22, (0.07, 0.1)), large=0.19)]
    if kind == "liver lesion":
        number = int(rng.choice([1, 2, 3], p=[0.4, 0.32, 0.28]))
        spots = rng.permutation([(-0.56, -0.14), (-0.34, -0.26), (-0.36, 0.08), (-0.55, 0.13)])[:number]
        return [
            entry(
                side="",
                x=float(x) + between(-0.03, 0.03),
                y=float(y) + between(-0.03, 0.03),
                size=between(0.09, 0.14, (0.05, 0.07)),
                contrast=between(0.24, 0.34, (0.1, 0.16)),
                large=0.12,
            )
            for x, y in spots
        ]
    if kind == "kidney stone":
        return [entry(y=between(-0.06, 0.06), size=between(0.055, 0.075, (0.03, 0.04)), contrast=0.5, large=0.07)]
    if kind == "renal mass":
        return [entry(y=between(-0.06, 0.06), size=between(0.15, 0.21, (0.09, 0.12)), large=0.18)]
    if kind == "ascites":
        return [entry(side="", size=1.0, large=2.0)]
    if kind == "hydrocephalus":
        return [entry(side="", size=between(0.7, 1.1, (0.4, 0.5)), large=0.95)]
    lobe = str(rng.choice(list(LOBES)))  # infarct, mass, hemorrhage
    lesion = entry(
        site=lobe,
        x=between(0.24, 0.36),
        y=LOBES[lobe] + between(-0.06, 0.06),
        z=between(-0.3, 0.06),
        size=between(0.17, 0.26, (0.09, 0.12)),
        large=0.22,
    )
    shifts = kind != "infarct" and not subtle and rng.random() < 0.5
    if shifts and not any(f["kind"] == "midline shift" for f in others):
        return [lesion, {**entry(size=between(0.1, 0.17), large=0.14), "kind": "midline shift"}]
    return [lesion]


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one case for one purpose: a count of cases or views never shifts another's."""
    return np.random.default_rng([seed, index, purpose])


def draw_view(case: Case, view: str, size: int, rng: np.random.Generator) -> tuple[bytes, bytes, dict[str, int]]:
    """One view of a case: JPEG of the picture, PNG of its label map, and the pixels per label."""
    picture, labels = phantom_drawing.draw(case.study, view, case.anatomy, case.findings, size, rng)
    out = []
    for image, options in ((picture, {"format": "JPEG", "quality": 92}), (labels, {"format": "PNG"})):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        out.append(buffer.getvalue())
    areas = np.bincount(np.asarray(labels).ravel(), minlength=len(LABELS) + 1)
    return out[0], out[1], {name: int(areas[number]) for name, number in LABELS.items() if areas[number]}


def write_beside(root: Path, cases: list[Case], masks: dict[str, dict[str, Any]]) -> None:
    """Latents and regions: ground truth for scoring maps, outside what the readers open."""
    latents = [
        {"index": c.index, "study": c.study, "views": c.views, "anatomy": c.anatomy, "findings": c.findings}
        for c in cases
    ]
    (root / "latents.json").write_text(json.dumps(latents), encoding="utf-8")
    content = {"labels": LABELS, "findings": list(FINDINGS), "images": masks}
    (root / "masks.json").write_text(json.dumps(content), encoding="utf-8")
