"""What the phantom is drawn on: an image with its label map, soft-edged shapes, paint and noise.

Coordinates: `u` runs to the right and `v` downwards, both from -1 to 1. Radiological convention: frontal, axial and
coronal images show the patient's left on the right-hand side of the image (`u > 0`). A lateral radiograph and a
sagittal slice look at a patient who faces the left-hand side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image

# Label ids of the masks. Organs come first; a finding is marked over the organ that it lies in.
ORGANS = ("lungs", "heart", "liver", "spleen", "kidneys", "brain", "ventricles")
FINDINGS = (
    "nodule",
    "consolidation",
    "pleural effusion",
    "pneumothorax",
    "cardiomegaly",
    "liver lesion",
    "kidney stone",
    "renal mass",
    "ascites",
    "infarct",
    "mass",
    "hemorrhage",
    "midline shift",
    "hydrocephalus",
)
LABELS = {name: number for number, name in enumerate((*ORGANS, *FINDINGS), start=1)}
KINDS_OF = {  # the findings that each study may show
    "xr_chest": ("nodule", "consolidation", "pleural effusion", "pneumothorax", "cardiomegaly"),
    "ct_chest": ("nodule", "consolidation", "pleural effusion", "pneumothorax", "cardiomegaly"),
    "ct_abdomen": ("liver lesion", "kidney stone", "renal mass", "ascites"),
    "ct_head": ("infarct", "mass", "hemorrhage", "hydrocephalus"),
    "mr_brain": ("infarct", "mass", "hemorrhage", "hydrocephalus"),
}

Field = np.ndarray  # (S, S) float32: coverage in [0, 1], or intensities
Values = Mapping[str, float]


def sign(side: str) -> float:
    """Where a side of the patient lies in the image: left on the right-hand side, +1."""
    return {"left": 1.0, "right": -1.0}[side]


def visible(kind: str, view: str) -> bool:
    """Whether a view can show a kind of finding at all."""
    hidden = {"lateral": ("pneumothorax",), "sagittal": ("midline shift",)}
    return kind not in hidden.get(view, ())


def smooth(value: Field) -> Field:
    return np.clip(value, 0.0, 1.0)


class Canvas:
    """An image and its label map, drawn in coordinates that are tilted, scaled and warped per patient."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size, self.rng = size, rng
        axis = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        x, y = np.meshgrid(axis, axis)  # (S, S)
        angle, scale = rng.normal(0, 0.035), 1 + rng.normal(0, 0.035)
        shift = rng.normal(0, 0.03, 2)
        phase = rng.uniform(0, 2 * np.pi, 2)
        self.u = np.float32(scale) * (x * np.cos(angle) + y * np.sin(angle) + shift[0]) + 0.02 * np.sin(
            3 * y + phase[0]
        )
        self.v = np.float32(scale) * (y * np.cos(angle) - x * np.sin(angle) + shift[1]) + 0.02 * np.sin(
            3 * x + phase[1]
        )
        self.u, self.v = self.u.astype(np.float32), self.v.astype(np.float32)
        self.edge = 3.0 / size  # an edge is blurred over about 1.5 pixels
        self.image = np.zeros((size, size), np.float32)
        self.labels = np.zeros((size, size), np.uint8)

    # shapes: coverage in [0, 1]

    def ellipse(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        angle: float = 0.0,
        edge: float = 0.0,
        u: Field | None = None,
        power: float = 2.0,
    ) -> Field:
        """Coverage of an ellipse (a rounder box with `power` above 2), turned by `angle` radians."""
        du, dv = (self.u if u is None else u) - cx, self.v - cy
        if angle:
            du, dv = du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)
        if power == 2.0:
            radius = np.sqrt((du / rx) ** 2 + (dv / ry) ** 2)
        else:
            radius = (np.abs(du / rx) ** power + np.abs(dv / ry) ** power) ** (1 / power)
        return smooth(0.5 + (1 - radius) * min(rx, ry) / max(edge, self.edge))

    def below(self, line: Field | float, edge: float = 0.0) -> Field:
        """Coverage of what lies lower in the image than `line`, an image row per column (or a constant)."""
        return smooth(0.5 + (self.v - line) / max(edge, self.edge))

    def band(self, distance: Field, half_width: float, edge: float = 0.0) -> Field:
        """Coverage of `|distance| < half_width`."""
        return smooth(0.5 + (half_width - np.abs(distance)) / max(edge, self.edge))

    def segment(self, x0: float, y0: float, x1: float, y1: float, half_width: float) -> Field:
        """Coverage of a thick straight line."""
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((self.u - x0) * dx + (self.v - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return self.band(np.hypot(self.u - x0 - t * dx, self.v - y0 - t * dy), half_width)

    def texture(self, cells: int) -> Field:
        """Smooth noise of unit variance with about `cells` blobs across the image."""
        coarse = self.rng.standard_normal((cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((self.size, self.size), Image.Resampling.BICUBIC))

    # painting

    def paint(self, coverage: Field, value: Field | float) -> None:
        self.image += coverage * (value - self.image)

    def add(self, coverage: Field, value: float) -> None:
        self.image += coverage * value

    def mark(self, coverage: Field, name: str) -> None:
        self.labels[coverage > 0.5] = LABELS[name]

    def finish(self, noise: float) -> tuple[Image.Image, Image.Image]:
        """The picture (8-bit grey) and its label map, after noise and a random display window."""
        image = self.image + noise * self.rng.standard_normal(self.image.shape).astype(np.float32)
        image = (image - 0.5) * self.rng.uniform(0.9, 1.12) + 0.5 + self.rng.normal(0, 0.02)
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return Image.fromarray(pixels), Image.fromarray(self.labels)


def of_kind(findings: list[dict], kind: str) -> list[dict]:
    return [finding for finding in findings if finding["kind"] == kind]


def opacity(c: Canvas, x: float, y: float, radius: float) -> Field:
    """An ill-defined, mottled opacity."""
    spot = c.ellipse(x, y, radius, 0.85 * radius, edge=0.6 * radius)
    return spot * np.clip(0.85 + 0.25 * c.texture(14), 0.3, 1.0)
