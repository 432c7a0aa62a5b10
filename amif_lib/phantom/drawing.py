"""Draws the phantom's images and region masks from a latent case: radiographs and CT of the trunk.

Radiological convention: frontal, axial and coronal images show the patient's left on the right-hand side of the image.
Head studies are drawn by `phantom_head`.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from amif_lib.phantom.canvas import Canvas, Field, Values, of_kind, opacity, sign, smooth
from amif_lib.phantom.head import draw_head


def draw(
    study: str, view: str, anatomy: Values, findings: list[dict], size: int, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """One image of a case, `(size, size)` 8-bit grey, and its label map of the same size (ids: `LABELS`).

    Args:
        study: `xr_chest`, `ct_chest`, `ct_abdomen`, `ct_head` or `mr_brain`.
        view: frontal, lateral, axial, coronal or sagittal, as the study allows.
        anatomy: the patient's proportions (`phantom.draw_case`), shared by the images of a study.
        findings: latents with `kind`, `side`, position `x, y, z`, `size` and `contrast`.
    """
    canvas = Canvas(size, rng)
    if study == "xr_chest":
        (_frontal if view == "frontal" else _lateral)(canvas, anatomy, findings)
        return canvas.finish(0.022)
    if study == "ct_chest":
        _ct_chest(canvas, anatomy, findings)
    elif study == "ct_abdomen":
        _ct_abdomen(canvas, anatomy, findings)
    else:
        draw_head(canvas, study, view, anatomy, findings)
    return canvas.finish(0.028)


# --- chest radiographs ---------------------------------------------------------------------------------------------


def _frontal(c: Canvas, a: Values, findings: list[dict]) -> None:
    u, v = c.u, c.v
    absolute = np.abs(u)
    c.image[:] = 0.03
    torso = np.maximum(c.below(-0.86 + 0.34 * absolute**2), c.band(u, 0.2) * (v < -0.4))
    c.paint(torso, 0.5 - 0.08 * absolute)
    domes = {"right": 0.5, "left": 0.56}  # the right hemidiaphragm stands higher: the liver
    hemithorax, lungs = {}, {}
    for side, base in domes.items():
        s = sign(side)
        hemithorax[side] = c.ellipse(s * 0.42 * a["width"], -0.08, 0.36 * a["width"], 0.74, power=2.4)
        dome = base + a["inspiration"] + 0.75 * (u - s * 0.36) ** 2
        lungs[side] = hemithorax[side] * (1 - c.below(dome))
        c.paint(c.below(dome) * c.ellipse(s * 0.42, 0.3, 0.42, 0.9), 0.66)
        c.paint(lungs[side], 0.17 + 0.07 * (v + 0.3))
        c.mark(lungs[side], "lungs")
    c.add(c.ellipse(0.4, 0.74, 0.13, 0.08), -0.22)  # gastric bubble, under the left dome

    thorax = torso * (v < 0.66) * (absolute < 0.86)
    spacing = 0.165
    phase = (v - 0.55 * (absolute - 0.32) ** 2 + a["rib_phase"]) / spacing
    c.add(c.band((phase % 1 - 0.5) * spacing, 0.024, 0.05) * thorax * (absolute > 0.1), 0.085)
    phase = (v + 0.9 * (absolute - 0.85) ** 2 + a["rib_phase"]) / spacing
    c.add(c.band((phase % 1 - 0.5) * spacing, 0.02, 0.05) * thorax * (absolute > 0.42), 0.05)

    for side in domes:  # hila and vessels
        s = sign(side)
        c.add(c.ellipse(s * 0.25, -0.02, 0.1, 0.17, edge=0.12), 0.16)
        for angle in c.rng.uniform(-1.2, 1.2, 4):
            c.add(
                c.segment(s * 0.25, 0.0, s * (0.25 + 0.32 * np.cos(angle)), 0.35 * np.sin(angle), 0.014) * lungs[side],
                0.07,
            )
    c.paint(c.band(u - 0.01, 0.13, 0.08) * torso, 0.6)  # mediastinum
    c.paint(c.ellipse(0.15, -0.32, 0.1, 0.12, edge=0.06), 0.62)  # aortic knob
    big = of_kind(findings, "cardiomegaly")
    width = a["heart"] + (big[0]["size"] if big else 0.0)
    grown = width - 0.29
    heart = np.maximum.reduce(
        [  # left ventricle with its apex, right atrium, great vessels
            c.ellipse(0.14 + 0.35 * grown, 0.34, width, 0.2 + 0.25 * grown, 0.42, edge=0.06),
            c.ellipse(0.02, 0.26, 0.2 + 0.5 * grown, 0.3, edge=0.06),
            c.ellipse(0.09, 0.0, 0.14, 0.26, 0.2, edge=0.08),
        ]
    ) * (1 - c.below(0.64, 0.06))
    c.paint(heart, 0.66)
    c.mark(heart, "cardiomegaly" if big else "heart")
    vertebra = c.band((v / 0.13 + a["rib_phase"]) % 1 - 0.5, 0.36, 0.15)
    c.add(c.band(u, 0.075, 0.04) * (0.5 + vertebra) * torso, 0.06)
    c.add(c.band(u, 0.042, 0.03) * (v < -0.26), -0.17)  # trachea
    for s in (-1, 1):
        c.add(c.segment(s * 0.08, -0.62, s * 0.78, -0.76 + 0.06 * a["rib_phase"], 0.03), 0.13)  # clavicles

    for f in of_kind(findings, "pneumothorax"):
        side = f["side"]
        s, amount = sign(side), f["size"]
        shrunk = c.ellipse(
            s * (0.42 - 0.55 * amount) * a["width"],
            0.06 + 0.35 * amount,
            0.36 - 0.28 * amount,
            0.7 - 0.62 * amount,
            power=2.2,
        )
        free = lungs[side] * (1 - shrunk) * (1 - heart) * (absolute > 0.14)
        c.paint(free, 0.03)
        c.add(shrunk * lungs[side] * (1 - heart), 0.1)
        c.add(smooth(shrunk * (1 - shrunk) * 5) * lungs[side], 0.3)  # visceral pleural line
        c.mark(free, "pneumothorax")
    for f in of_kind(findings, "consolidation"):
        patch = opacity(c, sign(f["side"]) * f["x"], f["y"], f["size"]) * lungs[f["side"]]
        c.add(patch, f["contrast"])
        c.mark(patch, "consolidation")
    for f in of_kind(findings, "nodule"):
        spot = c.ellipse(sign(f["side"]) * f["x"], f["y"], f["size"], f["size"] * 0.95, edge=0.05)
        c.add(spot, f["contrast"])
        c.mark(spot, "nodule")
    for f in of_kind(findings, "pleural effusion"):
        s = sign(f["side"])
        level = 0.62 - f["size"] - 0.55 * np.maximum(s * u - 0.3, 0) ** 1.5  # meniscus: higher at the chest wall
        fluid = hemithorax[f["side"]] * c.below(level, 0.05) * (s * u > 0.04)
        c.paint(fluid, 0.72)
        c.mark(fluid, "pleural effusion")


def _lateral(c: Canvas, a: Values, findings: list[dict]) -> None:
    u, v = c.u, c.v
    c.image[:] = 0.03
    torso = c.ellipse(0.02, 0.25, 0.86, 1.3, power=2.6)
    c.paint(torso, 0.5)
    cage = c.ellipse(-0.02, -0.02, 0.64, 0.82, 0.1, power=2.4)
    dome = 0.5 + a["inspiration"] + 0.18 * u + 0.35 * (u + 0.1) ** 2
    lungs = cage * (1 - c.below(dome))
    c.paint(cage * c.below(dome), 0.66)
    c.paint(lungs, 0.24 + 0.08 * u)
    c.mark(lungs, "lungs")
    spacing = 0.2
    phase = (v - 0.75 * u + 0.25 * u**2 + a["rib_phase"]) / spacing
    c.add(c.band((phase % 1 - 0.5) * spacing, 0.022, 0.05) * cage, 0.06)
    column = u - 0.56 - 0.07 * np.cos(2.2 * v)
    vertebra = c.band((v / 0.17 + a["rib_phase"]) % 1 - 0.5, 0.36, 0.12)
    c.add(c.band(column, 0.1, 0.04) * (0.35 + 0.65 * vertebra) * torso, 0.24)
    c.add(c.band(u + 0.66 - 0.12 * (v + 0.1) ** 2, 0.03) * (v > -0.6) * (v < 0.4), 0.25)  # sternum
    c.add(c.ellipse(0.04, -0.1, 0.12, 0.15, edge=0.12), 0.16)  # hila
    c.add(c.segment(-0.02, -0.85, 0.06, -0.22, 0.045), -0.14)  # trachea
    c.add(c.band(np.hypot(u - 0.12, v + 0.24) - 0.2, 0.05, 0.05) * (v < -0.2), 0.1)  # aortic arch
    big = of_kind(findings, "cardiomegaly")
    width = a["heart"] - 0.03 + (big[0]["size"] if big else 0.0)
    grown = width - 0.26
    heart = c.ellipse(-0.27 + 0.5 * grown, 0.26, width + 0.06, 0.22 + 0.6 * grown, 0.55, edge=0.07) * cage
    c.paint(heart, 0.62)
    c.mark(heart, "cardiomegaly" if big else "heart")
    for f in of_kind(findings, "consolidation"):
        patch = opacity(c, f["z"], f["y"], f["size"]) * lungs
        c.add(patch, f["contrast"])
        c.mark(patch, "consolidation")
    for f in of_kind(findings, "nodule"):
        spot = c.ellipse(f["z"], f["y"], f["size"], f["size"] * 0.95, edge=0.05)
        c.add(spot, f["contrast"])
        c.mark(spot, "nodule")
    for f in of_kind(findings, "pleural effusion"):  # fluid gathers in the posterior recess
        level = 0.72 - f["size"] - 0.7 * np.maximum(u - 0.1, 0) ** 1.5 + 0.9 * np.maximum(0.1 - u, 0)
        fluid = cage * c.below(level, 0.05)
        c.paint(fluid, 0.7)
        c.mark(fluid, "pleural effusion")


# --- CT of the trunk -----------------------------------------------------------------------------------------------


def _trunk(c: Canvas, a: Values, ry: float) -> tuple[Field, Field]:
    """Skin, fat and body wall of an axial slice; returns coverage of the body and of what lies inside its wall."""
    c.image[:] = 0.0
    rx = 0.92 * a["width"]
    body, inside = c.ellipse(0, 0, rx, ry, power=2.3), c.ellipse(0, 0, rx - a["fat"], ry - 0.85 * a["fat"], power=2.3)
    c.paint(body, 0.27)
    c.paint(inside, 0.5)
    return body, inside


def _spine(c: Canvas, y: float) -> None:
    c.paint(c.ellipse(0, y, 0.14, 0.11), 0.88)
    for s in (-1, 1):
        c.paint(c.segment(s * 0.08, y + 0.12, s * 0.2, y + 0.17, 0.03), 0.85)
    c.paint(c.segment(0, y + 0.16, 0, y + 0.28, 0.03), 0.85)
    c.paint(c.ellipse(0, y + 0.14, 0.055, 0.045), 0.45)  # spinal canal


def _ct_chest(c: Canvas, a: Values, findings: list[dict]) -> None:
    u, v = c.u, c.v
    _trunk(c, a, 0.7)
    for angle in np.arange(0.3, 2.6, 0.42) + 0.2 * a["rib_phase"]:
        for s in (-1, 1):
            x, y = s * 0.77 * a["width"] * np.sin(angle), -0.53 * np.cos(angle)
            c.paint(c.ellipse(x, y, 0.085, 0.028, s * (np.pi / 2 - (angle - np.pi / 2) * 0.6)), 0.92)
    c.paint(c.ellipse(0, -0.56, 0.14, 0.035), 0.88)  # sternum
    lungs = {side: c.ellipse(sign(side) * 0.4 * a["width"], 0.0, 0.33, 0.5, power=2.3) for side in ("right", "left")}
    for side, lung in lungs.items():
        c.paint(lung, 0.1)
        c.mark(lung, "lungs")
        for x, y, r in zip(
            c.rng.uniform(0.2, 0.6, 12), c.rng.uniform(-0.35, 0.4, 12), c.rng.uniform(0.008, 0.022, 12), strict=True
        ):  # vessels
            c.add(c.ellipse(sign(side) * x, y, r, r) * lung, 0.35)
    c.paint(c.band(u, 0.1, 0.06) * (np.abs(v) < 0.5), 0.5)
    big = of_kind(findings, "cardiomegaly")
    width = a["heart"] + (big[0]["size"] if big else 0.0)
    heart = c.ellipse(0.1 + 0.25 * (width - 0.29), -0.16, width, 0.24 + 0.3 * (width - 0.29), 0.45, edge=0.05)
    c.paint(heart, 0.6)
    c.mark(heart, "cardiomegaly" if big else "heart")
    c.paint(c.ellipse(0.1, -0.19, 0.5 * width, 0.14, 0.45, edge=0.08), 0.68)  # contrast in the chambers
    c.paint(c.ellipse(0.14, 0.25, 0.085, 0.085), 0.74)  # descending aorta
    c.paint(c.ellipse(-0.01, 0.14, 0.04, 0.035), 0.42)  # oesophagus
    _spine(c, 0.4)
    for f in of_kind(findings, "pneumothorax"):  # air rises to the front of a supine patient
        lung = lungs[f["side"]] * (1 - heart)
        collapsed = c.ellipse(sign(f["side"]) * 0.36, 0.2 + 0.3 * f["size"], 0.34, 0.5 - 0.45 * f["size"])
        free = lung * (1 - collapsed)
        c.paint(free, 0.0)
        c.add(lung * collapsed, 0.12)
        c.add(smooth(collapsed * (1 - collapsed) * 5) * lung, 0.35)
        c.mark(free, "pneumothorax")
    for f in of_kind(findings, "consolidation"):
        patch = opacity(c, sign(f["side"]) * f["x"], f["z"], f["size"]) * lungs[f["side"]]
        c.add(patch, f["contrast"] + 0.12)
        c.mark(patch, "consolidation")
    for f in of_kind(findings, "nodule"):
        spot = c.ellipse(sign(f["side"]) * f["x"], f["z"], f["size"], f["size"] * 0.95, edge=0.04)
        c.add(spot, f["contrast"] + 0.12)
        c.mark(spot, "nodule")
    for f in of_kind(findings, "pleural effusion"):  # fluid lies dependent, a crescent at the back
        fluid = lungs[f["side"]] * c.below(0.5 - f["size"] + 0.5 * (u - sign(f["side"]) * 0.35) ** 2, 0.04)
        c.paint(fluid, 0.46)
        c.mark(fluid, "pleural effusion")


def _ct_abdomen(c: Canvas, a: Values, findings: list[dict]) -> None:
    _, inside = _trunk(c, a, 0.72)
    cavity = c.ellipse(0, -0.06, 0.74 * a["width"], 0.52, power=2.4) * inside
    c.paint(cavity, 0.26)
    fluid = 0.1 if of_kind(findings, "ascites") else 0.0
    if fluid:  # ascites replaces the fat around the organs and lifts them off the wall
        c.paint(cavity, 0.44)
        c.mark(cavity, "ascites")
    grain = 0.02 * c.texture(24)
    liver = np.maximum(
        c.ellipse(-0.37 + fluid, -0.08, a["liver"] - fluid, 0.4 - fluid, 0.15, power=2.3),
        c.ellipse(-0.08, -0.26, 0.3, 0.16, -0.15),
    )
    c.paint(liver, 0.6 + grain)
    c.mark(liver, "liver")
    stomach = c.ellipse(0.28, -0.3, 0.24, 0.17, 0.3)
    c.paint(stomach, 0.48)
    c.paint(stomach * (1 - c.below(-0.32)), 0.03)  # an air-fluid level
    spleen = c.ellipse(0.58 - fluid, 0.08, 0.14, 0.27, -0.25)
    c.paint(spleen, 0.62 + grain)
    c.mark(spleen, "spleen")
    _spine(c, 0.34)
    c.paint(c.ellipse(0.06, 0.15, 0.075, 0.075), 0.8)  # aorta
    c.paint(c.ellipse(-0.1, 0.16, 0.075, 0.06), 0.66)  # vena cava
    for s in (-1, 1):
        c.paint(c.ellipse(s * 0.17, 0.4, 0.09, 0.13), 0.5)  # psoas
        kidney = c.ellipse(s * 0.38, 0.29, a["kidney"], 1.35 * a["kidney"], -s * 0.3)
        c.paint(kidney, 0.74)
        c.mark(kidney, "kidneys")
        c.paint(c.ellipse(s * 0.34, 0.29, 0.045, 0.07), 0.4)  # renal sinus
    for x, y in zip(c.rng.uniform(-0.02, 0.4, 4), c.rng.uniform(-0.06, 0.12, 4), strict=True):  # bowel
        loop = c.ellipse(x + 0.02, y, 0.075, 0.06) * (1 - spleen)
        c.paint(loop, 0.52)
        c.paint(c.ellipse(x + 0.02, y - 0.01, 0.035, 0.025), 0.62)
    for f in of_kind(findings, "renal mass"):
        s = sign(f["side"])
        lump = c.ellipse(s * (0.38 + 0.6 * f["size"]), 0.29 + f["y"], f["size"], f["size"], edge=0.04)
        c.paint(lump, 0.47 + 0.06 * c.texture(14))
        c.mark(lump, "renal mass")
    for f in of_kind(findings, "kidney stone"):
        stone = c.ellipse(sign(f["side"]) * 0.37, 0.29 + f["y"], f["size"], f["size"])
        c.paint(stone, 0.74 + f["contrast"])
        c.mark(stone, "kidney stone")
    for f in of_kind(findings, "liver lesion"):
        lesion = c.ellipse(f["x"], f["y"], f["size"], f["size"], edge=0.04) * liver
        c.add(lesion, -f["contrast"])
        c.mark(lesion, "liver lesion")
