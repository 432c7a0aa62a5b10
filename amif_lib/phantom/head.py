"""Draws the phantom's head studies: CT slices (axial) and MRI slices (axial, coronal, sagittal; T1 or T2 weighted)."""

from __future__ import annotations

import numpy as np

from amif_lib.phantom.canvas import Canvas, Field, Values, of_kind, opacity, sign, smooth

# Grey values of the tissues. Fluid is dark on T1, bright on T2; on CT bone is white and the brain is flat.
TISSUES = {
    "ct": {"scalp": 0.34, "skull": 1.0, "fluid": 0.16, "grey": 0.47, "white": 0.41},
    "t1": {"scalp": 0.9, "skull": 0.06, "fluid": 0.12, "grey": 0.45, "white": 0.62},
    "t2": {"scalp": 0.6, "skull": 0.05, "fluid": 0.96, "grey": 0.56, "white": 0.4},
}
# Grey values of the lesions: core, rim, surrounding oedema (None: not drawn).
LESIONS = {
    "infarct": {"ct": (0.24, None, None), "t1": (0.26, None, None), "t2": (0.9, None, None)},
    "mass": {"ct": (0.4, 0.68, 0.3), "t1": (0.3, 0.95, 0.38), "t2": (0.95, 0.3, 0.75)},
    "hemorrhage": {"ct": (0.86, None, 0.3), "t1": (0.93, 0.8, None), "t2": (0.1, 0.03, 0.72)},
}


def draw_head(c: Canvas, study: str, view: str, anatomy: Values, findings: list[dict]) -> None:
    """Draw one slice of a head study through its lesions; `anatomy["t2"]` above one half means T2 weighted."""
    sequence = "ct" if study == "ct_head" else ("t2" if anatomy["t2"] > 0.5 else "t1")
    c.image[:] = 0.0
    draw_slice = {"axial": _axial, "coronal": _coronal, "sagittal": _sagittal}[view]
    brain = draw_slice(c, TISSUES[sequence], anatomy, findings)
    for kind, appearance in LESIONS.items():
        for f in of_kind(findings, kind):
            s = sign(f["side"])
            x, y = {
                "axial": (s * f["x"], f["y"]),
                "coronal": (s * f["x"], f["z"] - 0.12),
                "sagittal": (f["y"] * 0.85, f["z"] - 0.16),
            }[view]
            _lesion(c, brain, kind, x, y, f["size"], appearance[sequence])


def _lesion(
    c: Canvas,
    brain: Field,
    kind: str,
    x: float,
    y: float,
    radius: float,
    values: tuple[float, float | None, float | None],
) -> None:
    core, rim, oedema = values
    if oedema is not None:
        c.paint(c.ellipse(x, y, 1.55 * radius, 1.4 * radius, edge=0.6 * radius) * brain, oedema)
    if kind == "infarct":
        spot = smooth(1.3 * opacity(c, x, y, 1.15 * radius)) * brain
    else:
        spot = c.ellipse(x, y, radius, 0.92 * radius, c.rng.uniform(-0.5, 0.5), edge=0.04) * brain
    if rim is not None:
        c.paint(spot, rim)
        c.paint(c.ellipse(x, y, 0.66 * radius, 0.6 * radius, edge=0.04) * brain, core)
    else:
        c.paint(spot, core)
    c.mark(spot, kind)


def _shifted(c: Canvas, findings: list[dict], extent: float) -> Field:
    """Horizontal coordinates in which midline structures are displaced away from the side of a mass effect."""
    u = c.u
    for f in of_kind(findings, "midline shift"):
        away = -sign(f["side"])
        u = u - away * f["size"] * np.exp(-((c.v / extent) ** 2))
    return u


def _ventricle_scale(findings: list[dict]) -> float:
    big = of_kind(findings, "hydrocephalus")
    return 1 + (big[0]["size"] if big else 0.0)


def _shell(c: Canvas, t: dict[str, float], cx: float, cy: float, rx: float, ry: float, power: float) -> Field:
    """Scalp, skull, fluid and cortex, one in the other; returns the brain's coverage."""
    for shrink, name in ((0.0, "scalp"), (0.055, "skull"), (0.12, "fluid")):
        c.paint(c.ellipse(cx, cy, rx - shrink, ry - shrink, power=power), t[name])
    brain = c.ellipse(cx, cy, rx - 0.14, ry - 0.14, power=power)
    c.paint(brain, t["grey"])
    c.mark(brain, "brain")
    # white matter reaches into the gyri: a scalloped border
    angle = np.arctan2(c.v - cy, c.u - cx)
    scallop = 0.035 * np.sin(17 * angle + 3 * c.texture(5))
    radius = (np.abs((c.u - cx) / (rx - 0.25)) ** power + np.abs((c.v - cy) / (ry - 0.25)) ** power) ** (1 / power)
    c.paint(smooth(0.5 + (1 + scallop - radius) * 5) * brain, t["white"])
    sulci = c.band(np.sin(17 * angle + 3 * c.texture(5)) - 1, 0.12, 0.3) * smooth((radius - 1.05) * 8) * brain
    c.paint(sulci * 0.8, t["fluid"])
    c.add(brain, 0.0)
    c.image += 0.015 * c.texture(20) * brain
    return brain


def _axial(c: Canvas, t: dict[str, float], a: Values, findings: list[dict]) -> Field:
    brain = _shell(c, t, 0, 0, 0.74 * a["width"], 0.92, 2.2)
    u, k = _shifted(c, findings, 0.55), _ventricle_scale(findings)
    c.paint(c.band(u, 0.014) * (np.abs(c.v) > 0.22) * brain, 0.5 * (t["fluid"] + t["grey"]))  # falx
    for s in (-1, 1):
        c.paint(c.ellipse(s * 0.24, 0.02, 0.09, 0.19, s * 0.35, u=u) * brain, t["grey"])  # basal ganglia, thalamus
    for s in (-1, 1):
        horns = np.maximum(
            c.ellipse(s * 0.1 * k**0.5, -0.2, 0.055 * k, 0.17 * k**0.5, -s * 0.4, u=u),
            c.ellipse(s * 0.15 * k**0.5, 0.22, 0.055 * k, 0.18 * k**0.5, -s * -0.45, u=u),
        )
        c.paint(horns * brain, t["fluid"])
        c.mark(horns * brain, "hydrocephalus" if k > 1 else "ventricles")
    third = c.ellipse(0, 0.02, 0.02 * k, 0.09, u=u)
    c.paint(third, t["fluid"])
    if of_kind(findings, "midline shift"):
        c.mark(c.band(u, 0.05) * (np.abs(c.v) < 0.6) * brain, "midline shift")
    return brain


def _coronal(c: Canvas, t: dict[str, float], a: Values, findings: list[dict]) -> Field:
    neck = c.ellipse(0, 0.8, 0.5, 0.5, power=3)
    c.paint(neck, 0.45 * t["scalp"] + 0.1)
    for s in (-1, 1):  # cheeks and muscles beside the skull base
        c.paint(c.ellipse(s * 0.46, 0.6, 0.17, 0.22), 0.3 + 0.2 * t["scalp"])
        c.paint(c.ellipse(s * 0.46, 0.62, 0.07, 0.15), 0.3)
    c.paint(c.ellipse(0, 0.74, 0.13, 0.2), 0.05)  # airway
    brain = _shell(c, t, 0, -0.14, 0.74 * a["width"], 0.76, 2.3)
    u, k = _shifted(c, findings, 0.5), _ventricle_scale(findings)
    for s in (-1, 1):  # Sylvian fissure separates the temporal lobe
        c.paint(c.segment(s * 0.6, 0.02, s * 0.34, 0.1, 0.025) * brain, t["fluid"])
    c.paint(c.band(u, 0.014) * (c.v < -0.3) * brain, 0.5 * (t["fluid"] + t["grey"]))  # falx
    c.paint(c.ellipse(0, 0.5, 0.15, 0.2), t["white"])  # brain stem
    for s in (-1, 1):
        c.paint(c.ellipse(s * 0.24, -0.02, 0.1, 0.09, u=u) * brain, t["grey"])
        horn = c.ellipse(s * 0.12 * k**0.5, -0.2, 0.13 * k**0.5, 0.05 * k, -s * 0.5, u=u)
        c.paint(horn * brain, t["fluid"])
        c.mark(horn * brain, "hydrocephalus" if k > 1 else "ventricles")
    c.paint(c.ellipse(0, 0.0, 0.02 * k, 0.1, u=u), t["fluid"])
    if of_kind(findings, "midline shift"):
        c.mark(c.band(u, 0.05) * (np.abs(c.v + 0.14) < 0.5) * brain, "midline shift")
    return brain


def _sagittal(c: Canvas, t: dict[str, float], a: Values, findings: list[dict]) -> Field:
    k = _ventricle_scale(findings)
    face = c.ellipse(-0.44, 0.5, 0.34, 0.52, 0.12, power=2.6)
    c.paint(face, 0.6 * t["scalp"] + 0.05)
    c.paint(c.segment(-0.8, 0.2, -0.92, 0.42, 0.06), 0.6 * t["scalp"] + 0.05)  # nose
    c.paint(c.ellipse(-0.55, 0.35, 0.17, 0.12), 0.1)  # nasal cavity
    c.paint(c.ellipse(-0.5, 0.66, 0.24, 0.1, 0.1), 0.45)  # tongue
    c.paint(c.ellipse(0.12, 0.8, 0.36, 0.4, power=3), 0.55 * t["scalp"] + 0.05)  # neck
    c.paint(c.segment(-0.14, 0.4, -0.08, 1.0, 0.05), 0.04)  # pharynx
    brain = _shell(c, t, 0.02, -0.2, 0.88, 0.7 * a["width"], 2.2)
    c.paint(c.ellipse(-0.1, 0.42, 0.44, 0.16, -0.25) * (1 - brain), 0.3)  # skull base
    c.paint(c.segment(0.13, 0.14, 0.2, 0.95, 0.075), t["white"])  # brain stem and cord
    c.paint(c.ellipse(0.1, 0.2, 0.11, 0.14), t["white"])  # pons
    cerebellum = c.ellipse(0.43, 0.24, 0.24, 0.2)
    c.paint(cerebellum, t["grey"])
    c.paint(cerebellum * c.band(np.sin(26 * np.hypot(c.u - 0.25, c.v - 0.2)), 0.35, 0.4), t["white"])
    brain = np.maximum(brain, cerebellum)
    arch = np.hypot((c.u - 0.02) / 0.42, (c.v + 0.08) / 0.26)
    inner = smooth(0.5 + (1 - arch) * 6) * (c.v < -0.06 + 0.02 * k)
    c.paint(inner, t["grey"])
    c.paint(c.ellipse(0.04, -0.17, 0.3 * k**0.3, 0.07 * k) * brain, t["fluid"])  # lateral ventricle
    c.mark(c.ellipse(0.04, -0.17, 0.3 * k**0.3, 0.07 * k), "hydrocephalus" if k > 1 else "ventricles")
    callosum = c.band((arch - 1) * 0.3, 0.035) * (c.v < -0.02)
    c.paint(callosum, t["white"] + (0.2 if t["fluid"] < 0.5 else -0.18))
    return brain
