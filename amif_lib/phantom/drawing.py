"""Draws the phantom's chest radiographs and CT and MRI slices of the head, each with a map of its organs and findings.

Coordinates `u` to the right and `v` downwards run from -1 to 1; by radiological convention, frontal and axial images
show the patient's left on the right-hand side (`u > 0`), and a lateral radiograph faces the left-hand side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

# Label ids of the masks. Organs come first; a finding is marked over the organ that it lies in.
ORGANS = ("lungs", "heart", "brain", "ventricles")
CHEST = ("nodule", "consolidation", "pleural effusion", "pneumothorax", "cardiomegaly")
HEAD = ("infarct", "mass", "hemorrhage", "hydrocephalus")
FINDINGS = CHEST + HEAD
LABELS = {name: number for number, name in enumerate((*ORGANS, *FINDINGS), start=1)}
KINDS_OF = {"xr_chest": CHEST, "ct_head": HEAD, "mr_brain": HEAD}

# Grey values of a head's tissues. Fluid is dark on T1, bright on T2; on CT bone is white and the brain is flat.
TISSUES = {
    "ct": {"scalp": 0.34, "skull": 1.0, "fluid": 0.16, "grey": 0.47, "white": 0.41},
    "t1": {"scalp": 0.9, "skull": 0.06, "fluid": 0.12, "grey": 0.45, "white": 0.62},
    "t2": {"scalp": 0.6, "skull": 0.05, "fluid": 0.96, "grey": 0.56, "white": 0.4},
}
# Grey values of a head's lesions: core, rim, surrounding oedema (None: not drawn).
LESIONS = {
    "infarct": {"ct": (0.2, None, None), "t1": (0.2, None, None), "t2": (0.9, None, None)},
    "mass": {"ct": (0.25, 0.85, 0.3), "t1": (0.2, 0.95, 0.38), "t2": (0.95, 0.2, 0.75)},
    "hemorrhage": {"ct": (0.86, None, 0.3), "t1": (0.93, 0.8, None), "t2": (0.1, 0.03, 0.72)},
}

SIGN = {"left": 1.0, "right": -1.0}  # of u, where a side of the patient lies in the image
Field = np.ndarray  # (S, S) float32: coverage in [0, 1], or intensities
Values = Mapping[str, float]
Findings = list[dict[str, Any]]


def draw(
    study: str, view: str, anatomy: Values, findings: Findings, size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """One image of a case, `(size, size)` 8-bit grey, and its label map of the same size (ids: `LABELS`).

    The images of a study share the patient's `anatomy` and `findings`.
    """
    canvas = Canvas(size, rng)
    if study == "xr_chest":
        (_frontal if view == "frontal" else _lateral)(canvas, anatomy, findings)
    else:
        _head(canvas, study, anatomy, findings)
    return canvas.finish(0.025)


def visible(kind: str, view: str) -> bool:
    """Whether a view can show a kind of finding at all."""
    return not (kind == "pneumothorax" and view == "lateral")


def of_kind(findings: Findings, kind: str) -> Findings:
    return [finding for finding in findings if finding["kind"] == kind]


def smooth(value: Field) -> Field:
    return np.clip(value, 0.0, 1.0)


def _rounder(x: Field, y: Field, power: float) -> Field:
    return (np.abs(x) ** power + np.abs(y) ** power) ** (1 / power)


class Canvas:
    """An image and its label map, drawn in coordinates that are tilted, scaled and warped per patient."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        x, y = np.meshgrid(axis, axis)  # (S, S)
        angle, scale = rng.normal(0, 0.035), np.float32(1 + rng.normal(0, 0.035))
        (dx, dy), (px, py) = rng.normal(0, 0.03, 2), rng.uniform(0, 2 * np.pi, 2)
        u = scale * (x * np.cos(angle) + y * np.sin(angle) + dx) + 0.02 * np.sin(3 * y + px)
        v = scale * (y * np.cos(angle) - x * np.sin(angle) + dy) + 0.02 * np.sin(3 * x + py)
        self.u, self.v = u.astype(np.float32), v.astype(np.float32)
        self.edge = 3.0 / size  # an edge is blurred over about 1.5 pixels
        self.image = np.zeros((size, size), np.float32)
        self.labels = np.zeros((size, size), np.uint8)

    # shapes: coverage in [0, 1]

    def ellipse(
        self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0, edge: float = 0.0, power: float = 2.0
    ) -> Field:
        """Coverage of an ellipse (a rounder box with `power` above 2), turned by `angle` radians."""
        du, dv = self.u - cx, self.v - cy
        if angle:
            du, dv = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)
        radius = np.hypot(du / rx, dv / ry) if power == 2 else _rounder(du / rx, dv / ry, power)
        return smooth(0.5 + (1 - radius) * min(rx, ry) / max(edge, self.edge))

    def below(self, line: Field | float, edge: float = 0.0) -> Field:
        """Coverage of what lies lower in the image than `line`, an image row per column (or a constant)."""
        return smooth(0.5 + (self.v - line) / max(edge, self.edge))

    def band(self, distance: Field, half_width: float, edge: float = 0.0) -> Field:
        """Coverage of `|distance| < half_width`."""
        return smooth(0.5 + (half_width - np.abs(distance)) / max(edge, self.edge))

    def stripes(self, phase: Field, spacing: float, half_width: float) -> Field:
        """Coverage of parallel bands, one every `spacing` of the phase."""
        return self.band((phase / spacing % 1 - 0.5) * spacing, half_width, 0.05)

    def segment(self, x0: float, y0: float, x1: float, y1: float, half_width: float) -> Field:
        """Coverage of a thick straight line."""
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((self.u - x0) * dx + (self.v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return self.band(np.hypot(self.u - x0 - t * dx, self.v - y0 - t * dy), half_width)

    def texture(self, cells: int) -> Field:
        """Smooth noise of unit variance with about `cells` blobs across the image."""
        coarse = self.rng.standard_normal((cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((self.size, self.size), Image.Resampling.BICUBIC))

    def opacity(self, x: float, y: float, radius: float) -> Field:
        """Coverage of an ill-defined, mottled opacity."""
        spot = self.ellipse(x, y, radius, 0.85 * radius, edge=0.6 * radius)
        return spot * np.clip(0.85 + 0.25 * self.texture(14), 0.3, 1.0)

    # painting

    def paint(self, coverage: Field, value: Field | float, name: str = "") -> None:
        """Set the covered part to a value, and mark it as an organ or finding if it has a name."""
        self.image += coverage * (value - self.image)
        self.mark(coverage, name)

    def add(self, coverage: Field, value: float, name: str = "") -> None:
        self.image += coverage * value
        self.mark(coverage, name)

    def mark(self, coverage: Field, name: str) -> None:
        if name:
            self.labels[coverage > 0.5] = LABELS[name]

    def finish(self, noise: float) -> tuple[Image.Image, Image.Image]:
        """The picture (8-bit grey) and its label map, after noise and a random display window."""
        image = self.image + noise * self.rng.standard_normal(self.image.shape).astype(np.float32)
        image = (image - 0.5) * self.rng.uniform(0.9, 1.12) + 0.5 + self.rng.normal(0, 0.02)
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels), Image.fromarray(self.labels)


def _heart(a: Values, findings: Findings) -> tuple[float, str]:
    """Half the heart's width, and the label that it is marked with."""
    big = of_kind(findings, "cardiomegaly")
    return a["heart"] + (big[0]["size"] if big else 0.0), "cardiomegaly" if big else "heart"


def _in_lungs(c: Canvas, findings: Findings, place: Callable[[dict], tuple[float, float, Field]]) -> None:
    """Consolidations and nodules; `place` gives the centre of one and the coverage of its lung."""
    for f in of_kind(findings, "consolidation"):
        x, y, lung = place(f)
        c.add(c.opacity(x, y, f["size"]) * lung, f["contrast"], "consolidation")
    for f in of_kind(findings, "nodule"):
        x, y, _ = place(f)
        c.add(c.ellipse(x, y, f["size"], 0.95 * f["size"], edge=0.045), f["contrast"], "nodule")


# --- chest radiographs ---------------------------------------------------------------------------------------------


def _frontal(c: Canvas, a: Values, findings: Findings) -> None:
    u, v = c.u, c.v
    absolute = np.abs(u)
    c.image[:] = 0.03
    torso = np.maximum(c.below(-0.86 + 0.34 * absolute**2), c.band(u, 0.2) * (v < -0.4))
    c.paint(torso, 0.5 - 0.08 * absolute)
    hemithorax, lungs = {}, {}
    for side, base in {"right": 0.5, "left": 0.56}.items():  # the right hemidiaphragm stands higher: the liver
        s = SIGN[side]
        hemithorax[side] = c.ellipse(s * 0.42 * a["width"], -0.08, 0.36 * a["width"], 0.74, power=2.4)
        dome = base + a["inspiration"] + 0.75 * (u - s * 0.36) ** 2
        lungs[side] = hemithorax[side] * (1 - c.below(dome))
        c.paint(c.below(dome) * c.ellipse(s * 0.42, 0.3, 0.42, 0.9), 0.66)
        c.paint(lungs[side], 0.17 + 0.07 * (v + 0.3), "lungs")
    c.add(c.ellipse(0.4, 0.74, 0.13, 0.08), -0.22)  # gastric bubble, under the left dome
    thorax = torso * (v < 0.66) * (absolute < 0.86)
    for bow, axis, inner, half_width, value in ((-0.55, 0.32, 0.1, 0.024, 0.085), (0.9, 0.85, 0.42, 0.02, 0.05)):
        ribs = c.stripes(v + bow * (absolute - axis) ** 2 + a["rib_phase"], 0.165, half_width)  # posterior, anterior
        c.add(ribs * thorax * (absolute > inner), value)
    for side, lung in lungs.items():  # hila and vessels
        s = SIGN[side]
        c.add(c.ellipse(s * 0.25, -0.02, 0.1, 0.17, edge=0.12), 0.16)
        for angle in c.rng.uniform(-1.2, 1.2, 4):
            end = (s * (0.25 + 0.32 * np.cos(angle)), 0.35 * np.sin(angle))
            c.add(c.segment(s * 0.25, 0.0, *end, 0.014) * lung, 0.07)
    c.paint(c.band(u - 0.01, 0.13, 0.08) * torso, 0.6)  # mediastinum
    c.paint(c.ellipse(0.15, -0.32, 0.1, 0.12, edge=0.06), 0.62)  # aortic knob
    width, label = _heart(a, findings)
    grown = width - 0.29
    ventricle = c.ellipse(0.14 + 0.35 * grown, 0.34, width, 0.2 + 0.25 * grown, 0.42, edge=0.06)  # left, with its apex
    atrium = c.ellipse(0.02, 0.26, 0.2 + 0.5 * grown, 0.3, edge=0.06)  # right
    vessels = c.ellipse(0.09, 0.0, 0.14, 0.26, 0.2, edge=0.08)
    heart = np.maximum.reduce([ventricle, atrium, vessels]) * (1 - c.below(0.64, 0.06))
    c.paint(heart, 0.66, label)
    vertebra = c.band((v / 0.13 + a["rib_phase"]) % 1 - 0.5, 0.36, 0.15)
    c.add(c.band(u, 0.075, 0.04) * (0.5 + vertebra) * torso, 0.06)
    c.add(c.band(u, 0.042, 0.03) * (v < -0.26), -0.17)  # trachea
    for s in (-1, 1):
        c.add(c.segment(s * 0.08, -0.62, s * 0.78, -0.76 + 0.06 * a["rib_phase"], 0.03), 0.13)  # clavicles
    for f in of_kind(findings, "pneumothorax"):
        s, amount = SIGN[f["side"]], f["size"]
        centre = (s * (0.42 - 0.55 * amount) * a["width"], 0.06 + 0.35 * amount)
        collapsed = c.ellipse(*centre, 0.36 - 0.28 * amount, 0.7 - 0.62 * amount, power=2.2)
        lung = lungs[f["side"]] * (1 - heart) * (absolute > 0.14)
        c.paint(lung * (1 - collapsed), 0.03, "pneumothorax")
        c.add(lung * collapsed, 0.1)
        c.add(smooth(collapsed * (1 - collapsed) * 5) * lung, 0.3)  # visceral pleural line
    _in_lungs(c, findings, lambda f: (SIGN[f["side"]] * f["x"], f["y"], lungs[f["side"]]))
    for f in of_kind(findings, "pleural effusion"):
        s = SIGN[f["side"]]
        level = 0.62 - f["size"] - 0.55 * np.maximum(s * u - 0.3, 0) ** 1.5  # meniscus: higher at the chest wall
        c.paint(hemithorax[f["side"]] * c.below(level, 0.05) * (s * u > 0.04), 0.72, "pleural effusion")


def _lateral(c: Canvas, a: Values, findings: Findings) -> None:
    u, v = c.u, c.v
    c.image[:] = 0.03
    torso = c.ellipse(0.02, 0.25, 0.86, 1.3, power=2.6)
    c.paint(torso, 0.5)
    cage = c.ellipse(-0.02, -0.02, 0.64, 0.82, 0.1, power=2.4)
    dome = 0.5 + a["inspiration"] + 0.18 * u + 0.35 * (u + 0.1) ** 2
    lungs = cage * (1 - c.below(dome))
    c.paint(cage * c.below(dome), 0.66)
    c.paint(lungs, 0.24 + 0.08 * u, "lungs")
    c.add(c.stripes(v - 0.75 * u + 0.25 * u**2 + a["rib_phase"], 0.2, 0.022) * cage, 0.06)
    column = u - 0.56 - 0.07 * np.cos(2.2 * v)
    vertebra = c.band((v / 0.17 + a["rib_phase"]) % 1 - 0.5, 0.36, 0.12)
    c.add(c.band(column, 0.1, 0.04) * (0.35 + 0.65 * vertebra) * torso, 0.24)
    c.add(c.band(u + 0.66 - 0.12 * (v + 0.1) ** 2, 0.03) * (v > -0.6) * (v < 0.4), 0.25)  # sternum
    c.add(c.ellipse(0.04, -0.1, 0.12, 0.15, edge=0.12), 0.16)  # hila
    c.add(c.segment(-0.02, -0.85, 0.06, -0.22, 0.045), -0.14)  # trachea
    c.add(c.band(np.hypot(u - 0.12, v + 0.24) - 0.2, 0.05, 0.05) * (v < -0.2), 0.1)  # aortic arch
    width, label = _heart(a, findings)
    grown = width - 0.29
    heart = c.ellipse(-0.27 + 0.5 * grown, 0.26, width + 0.03, 0.22 + 0.6 * grown, 0.55, edge=0.07) * cage
    c.paint(heart, 0.62, label)
    _in_lungs(c, findings, lambda f: (f["depth"], f["y"], lungs))
    for f in of_kind(findings, "pleural effusion"):  # fluid gathers in the posterior recess
        level = 0.72 - f["size"] - 0.7 * np.maximum(u - 0.1, 0) ** 1.5 + 0.9 * np.maximum(0.1 - u, 0)
        c.paint(cage * c.below(level, 0.05), 0.7, "pleural effusion")


# --- the head ------------------------------------------------------------------------------------------------------


def _head(c: Canvas, study: str, a: Values, findings: Findings) -> None:
    """An axial CT or MRI slice; `anatomy["t2"]` above one half is T2 weighted."""
    sequence = "ct" if study == "ct_head" else ("t2" if a["t2"] > 0.5 else "t1")
    t, u, v = TISSUES[sequence], c.u, c.v
    rx, ry, power = 0.74 * a["width"], 0.92, 2.2
    for shrink, name in ((0.0, "scalp"), (0.055, "skull"), (0.12, "fluid")):
        c.paint(c.ellipse(0, 0, rx - shrink, ry - shrink, power=power), t[name])
    brain = c.ellipse(0, 0, rx - 0.14, ry - 0.14, power=power)
    c.paint(brain, t["grey"], "brain")
    # white matter reaches into the gyri: a scalloped border
    wave = np.sin(17 * np.arctan2(v, u) + 3 * c.texture(5))
    radius = _rounder(u / (rx - 0.25), v / (ry - 0.25), power)
    c.paint(smooth(0.5 + (1 + 0.035 * wave - radius) * 5) * brain, t["white"])
    c.paint(0.4 * c.band(wave - 1, 0.12, 0.3) * smooth((radius - 1.05) * 8) * brain, t["fluid"])  # sulci
    c.image += 0.015 * c.texture(20) * brain
    c.paint(c.band(u, 0.014) * (np.abs(v) > 0.22) * brain, 0.5 * (t["fluid"] + t["grey"]))  # falx
    big = of_kind(findings, "hydrocephalus")
    k, label = 1 + (big[0]["size"] if big else 0.0), "hydrocephalus" if big else "ventricles"
    for s in (-1, 1):  # basal ganglia, horns of the lateral ventricle
        c.paint(c.ellipse(s * 0.24, 0.02, 0.09, 0.19, s * 0.35) * brain, t["grey"])
        horn = c.ellipse(s * 0.1 * k**0.5, -0.2, 0.055 * k, 0.17 * k**0.5, -s * 0.4)
        horn = np.maximum(horn, c.ellipse(s * 0.15 * k**0.5, 0.22, 0.055 * k, 0.18 * k**0.5, s * 0.45))
        c.paint(horn * brain, t["fluid"], label)
    c.paint(c.ellipse(0, 0.02, 0.02 * k, 0.09), t["fluid"])  # third ventricle
    for kind, appearance in LESIONS.items():
        core, rim, oedema = appearance[sequence]
        for f in of_kind(findings, kind):
            x, y, size = SIGN[f["side"]] * f["x"], f["y"], f["size"]
            if oedema is not None:
                c.paint(c.ellipse(x, y, 1.55 * size, 1.4 * size, edge=0.6 * size) * brain, oedema)
            if kind == "infarct":
                spot = smooth(1.6 * c.opacity(x, y, 1.15 * size)) * brain
            else:
                spot = c.ellipse(x, y, size, 0.92 * size, c.rng.uniform(-0.5, 0.5), edge=0.04) * brain
            c.paint(spot, core if rim is None else rim, kind)
            if rim is not None:
                c.paint(c.ellipse(x, y, 0.66 * size, 0.6 * size, edge=0.04) * brain, core)
