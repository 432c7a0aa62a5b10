"""A phantom case: what a synthetic patient has; pictures, masks, texts and questions all follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from amif_lib.phantom.drawing import KINDS_OF, visible

# How often a study type is drawn: among studies of several views, among single images.
SHARES = {True: (0.6, 0.14, 0.26), False: (0.5, 0.2, 0.3)}
NORMAL = 0.35  # share of studies without a finding
SUBTLE = 0.15  # share of findings that are small and faint
ZONES = {"upper zone": -0.42, "mid zone": -0.04, "lower zone": 0.26}
LOBES = {"frontal lobe": -0.5, "parietal lobe": 0.08, "occipital lobe": 0.56}
# Ranges of the size, usual and subtle, and from what size on a finding is called large.
SIZES = {
    "nodule": ((0.1, 0.16), (0.05, 0.08), 0.13),
    "consolidation": ((0.2, 0.3), (0.13, 0.17), 0.26),
    "pleural effusion": ((0.28, 0.75), (0.14, 0.22), 0.52),
    "pneumothorax": ((0.25, 0.5), (0.12, 0.18), 0.38),
    "cardiomegaly": ((0.14, 0.22), (0.07, 0.1), 0.19),
    "hydrocephalus": ((0.7, 1.1), (0.4, 0.5), 0.95),
} | dict.fromkeys(("infarct", "mass", "hemorrhage"), ((0.17, 0.26), (0.09, 0.12), 0.22))
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
    subtle = bool(rng.random() < SUBTLE)
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
        usual, faint, large = SIZES[kind]
        size = float(rng.uniform(*(faint if subtle else usual)))
        contrast = float(rng.uniform(0.15, 0.25) if subtle else rng.uniform(0.3, 0.42))
        severity = "small" if subtle else ("large" if size > large else "moderate")
        entry = {"kind": kind, "side": "" if kind in NO_SIDE else side, "site": site if number == 1 else ""}
        place = {"x": float(x), "y": float(y), "depth": float(depth)}
        entries.append(entry | place | {"size": size, "severity": severity, "contrast": contrast})
    return entries
