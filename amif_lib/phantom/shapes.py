"""Shapes with captions, in ROCO's layout: non-medical pictures, for a teacher without medical knowledge."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from amif_lib.phantom.cases import stream
from amif_lib.phantom.sets import Writer

COLOURS = {"red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (240, 210, 40),
           "purple": (148, 70, 190), "orange": (255, 127, 14), "white": (240, 240, 240)}  # fmt: skip
GROUNDS = {"dark": (30, 30, 30), "grey": (120, 120, 120)}
SIZES = {"small": 0.09, "large": 0.17}  # half of the side, in sides of the picture
PLACES = {
    "upper left": (0.27, 0.27),
    "upper right": (0.73, 0.27),
    "lower left": (0.27, 0.73),
    "lower right": (0.73, 0.73),
}
OUTLINES = {  # corners about the centre, in halves of the side; a circle has a corner every 6 degrees
    "circle": [(np.cos(t), np.sin(t)) for t in np.arange(60) * np.pi / 30],
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "bar": [(-1, -0.33), (1, -0.33), (1, 0.33), (-1, 0.33)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
}
NUMBERS = ("One shape", "Two shapes", "Three shapes")


def shapes(out: Writer, counts: dict[str, int]) -> None:
    """One, two or three shapes in different quarters of a plain ground, and every one named in the caption."""
    folder = "data/train/radiology"  # the name is ROCO's; nothing here is radiology
    (out.root / folder / "images").mkdir(parents=True)
    captions, licences = [], ["ROCO_ID,PMC_ID,CC"]
    for index in range(counts["studies"]):
        rng = stream(out.seed, index, 0)
        ground, chosen = str(rng.choice(list(GROUNDS))), sorted(rng.permutation(4)[: rng.integers(1, 4)])
        picture = Image.new("RGB", (4 * out.size, 4 * out.size), GROUNDS[ground])  # reduced at the end
        said = []
        for place in (list(PLACES)[i] for i in chosen):
            shape, colour, size = (str(rng.choice(list(kinds))) for kinds in (OUTLINES, COLOURS, SIZES))
            centre = np.round(np.add(PLACES[place], rng.uniform(-0.06, 0.06, 2)), 3)
            corners = 4 * out.size * (centre + SIZES[size] * np.array(OUTLINES[shape]))
            ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners], fill=COLOURS[colour])
            said.append(f"a {size} {colour} {shape} in the {place}")
        name = f"ROCO_{80_000 + index:05d}"
        listed = " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))
        captions.append(f"{name}\t {NUMBERS[len(said) - 1]} on a {ground} ground: {listed}.")
        licences.append(f"{name},PMC{980_000_000 + 10_000 * out.seed + index}_shapes-g{index:04d}.jpg,CC BY")
        pixels = np.asarray(picture.resize((out.size, out.size), Image.Resampling.LANCZOS), float)  # (S, S, 3)
        pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out.root / folder / "images" / f"{name}.jpg", quality=92)
        out.bar.step()
    out.write(f"{folder}/captions.txt", captions)
    out.write(f"{folder}/licences.txt", licences)
