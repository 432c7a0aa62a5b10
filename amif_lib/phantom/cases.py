"""A phantom case: what a synthetic patient has; pictures, masks, texts and questions all follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amif_lib.phantom.drawing import KINDS_OF, visible

# How often a study type is drawn: among studies of several views, among single images.
SHARES = {True: (0.6, 0.14, 0.26), False: (0.5, 0.2, 0.3)}
NORMAL = 0.35  # share of studies without a finding
ZONES = {"upper zone": -0.42, "mid zone": -0.04, "lower zone": 0.26}
LOBES = {"frontal lobe": -0.5, "parietal lobe": 0.08, "occipital lobe": 0.56}
# Range of the size; above its middle a finding is called large. Sizes and contrast were chosen so that a model of 64
# channels at 48 pixels can see the findings within the demo's budget (`specs/scales/demo.yaml`).
SIZES = {
    "nodule": (0.15, 0.22),
    "consolidation": (0.24, 0.36),
    "pleural effusion": (0.36, 0.8),
    "pneumothorax": (0.32, 0.55),
    "cardiomegaly": (0.18, 0.26),
    "hydrocephalus": (0.9, 1.3),
} | dict.fromkeys(("infarct", "mass", "hemorrhage"), (0.22, 0.32))
CONTRAST = (0.42, 0.58)  # of nodules and consolidations
NO_SIDE = ("cardiomegaly", "hydrocephalus")


@dataclass(frozen=True)
class Case:
    """One patient's study: what the pictures show and the texts say."""

    index: int
    study: str
    views: tuple[str, ...]
    anatomy: dict[str, float]
    findings: list[dict[str, Any]]

    def kinds(self, view: str = "") -> list[str]:
        """The kinds of finding; with `view`, only those that can be seen in it."""
        found = dict.fromkeys(finding["kind"] for finding in self.findings)
        return [kind for kind in found if not view or visible(kind, view)]


def stream(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one case for one purpose: a count of cases or views never shifts another's."""
    return np.random.default_rng([seed, index, purpose])


def draw_case(index: int, several: bool, rng: np.random.Generator) -> Case:
    """A random case, with `several` views of a study where it can have them, else with one."""
    study = str(rng.choice(list(KINDS_OF), p=SHARES[several]))
    views: tuple[str, ...] = ("axial",)
    if study == "xr_chest":
        both = several and rng.random() < 0.8
        views = ("frontal", "lateral") if both else (("frontal",) if rng.random() < 0.66 else ("lateral",))
    anatomy = {
        "width": float(np.clip(rng.normal(1, 0.04), 0.9, 1.06)),
        "heart": float(rng.uniform(0.26, 0.31)),
        "inspiration": float(rng.uniform(-0.05, 0.05)),
        "rib_phase": float(rng.random()),
        "t2": float(rng.random()),
    }
    findings: list[dict[str, Any]] = []
    if rng.random() >= NORMAL:
        number = int(rng.choice([1, 2, 3], p=[0.74, 0.23, 0.03]))
        for kind in rng.permutation(KINDS_OF[study])[:number]:
            findings += _draw_finding(str(kind), findings, rng)
    return Case(index, study, views, anatomy, findings)


def _draw_finding(kind: str, others: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """The latents of one finding: one entry, or up to three where it is multiple."""
    side = str(rng.choice(["left", "right"]))
    taken = [f["side"] for f in others if f["side"] and "pneumothorax" in (kind, f["kind"])]
    if taken:  # a collapsed lung would hide what lies in it
        side = "left" if taken[0] == "right" else "right"
    number = int(rng.choice([1, 2, 3], p=[0.42, 0.32, 0.26])) if kind == "nodule" else 1
    zones, lobe = rng.permutation(list(ZONES)), str(rng.choice(list(LOBES)))
    depths = rng.permutation([-0.24, 0.0, 0.24])
    entries = []
    for i in range(number):
        dx, dy = rng.uniform(-0.06, 0.06, 2)
        site, x, y, depth = "", 0.0, dy, 0.0
        if kind in ("nodule", "consolidation"):
            site, x, y, depth = str(zones[i]), 0.4 + 1.6 * dx, ZONES[zones[i]] + dy, depths[i] + 0.6 * dx
        elif kind in ("infarct", "mass", "hemorrhage"):
            site, x, y = lobe, 0.3 + dx, LOBES[lobe] + dy
        size, contrast = float(rng.uniform(*SIZES[kind])), float(rng.uniform(*CONTRAST))
        severity = "large" if size > sum(SIZES[kind]) / 2 else "moderate"
        entry = {"kind": kind, "side": "" if kind in NO_SIDE else side, "site": site if number == 1 else ""}
        place = {"x": float(x), "y": float(y), "depth": float(depth)}
        entries.append(entry | place | {"size": size, "severity": severity, "contrast": contrast})
    return entries
