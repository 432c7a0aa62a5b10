"""General shapes with captions: pictures of no medical kind, for a teacher that knows nothing of radiology.

One, two or three coloured shapes on a plain ground, written in ROCO's layout, whose reader then reads them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from amif_lib.phantom.cases import stream

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 210, 40),
    "purple": (148, 70, 190),
    "orange": (255, 127, 14),
    "white": (240, 240, 240),
}
GROUNDS = {"dark": (30, 30, 30), "grey": (120, 120, 120)}
SHAPES = ("circle", "square", "triangle", "diamond", "bar")
SIZES = {"small": 0.09, "large": 0.17}  # half of the side, in sides of the picture
PLACES = {
    "upper left": (0.27, 0.27),
    "upper right": (0.73, 0.27),
    "lower left": (0.27, 0.73),
    "lower right": (0.73, 0.73),
}
COUNTS = {1: "One shape", 2: "Two shapes", 3: "Three shapes"}


def draw_shapes(rng: np.random.Generator) -> dict[str, Any]:
    """A picture's latents: its ground, and shapes in different quarters of the picture."""
    number = int(rng.integers(1, 4))
    places = [list(PLACES)[i] for i in sorted(rng.permutation(len(PLACES))[:number])]
    shapes = []
    for place in places:
        x, y = PLACES[place]
        shapes.append(
            {
                "shape": SHAPES[rng.integers(len(SHAPES))],
                "colour": list(COLOURS)[rng.integers(len(COLOURS))],
                "size": list(SIZES)[rng.integers(len(SIZES))],
                "place": place,
                "centre": [
                    round(x + float(rng.uniform(-0.06, 0.06)), 3),
                    round(y + float(rng.uniform(-0.06, 0.06)), 3),
                ],
            }
        )
    return {"ground": list(GROUNDS)[rng.integers(len(GROUNDS))], "shapes": shapes}


def caption(latents: dict[str, Any]) -> str:
    """What the picture shows, every shape with size, colour and place."""
    shapes, parts = latents["shapes"], []
    for entry in shapes:
        name = f"{entry['size']} {entry['colour']} {entry['shape']}"
        parts.append(f"{'an' if name[0] in 'aeiou' else 'a'} {name} in the {entry['place']}")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{COUNTS[len(shapes)]} on a {latents['ground']} ground: {listed}."


def paint(latents: dict[str, Any], size: int, rng: np.random.Generator) -> bytes:
    """The picture as JPEG: drawn at four times its size and reduced, with a little noise."""
    side = 4 * size
    image = Image.new("RGB", (side, side), GROUNDS[latents["ground"]])
    pen = ImageDraw.Draw(image)
    for entry in latents["shapes"]:
        (x, y), half = (side * value for value in entry["centre"]), side * SIZES[entry["size"]]
        box, colour = (x - half, y - half, x + half, y + half), COLOURS[entry["colour"]]
        if entry["shape"] == "circle":
            pen.ellipse(box, fill=colour)
        elif entry["shape"] == "square":
            pen.rectangle(box, fill=colour)
        elif entry["shape"] == "bar":
            pen.rectangle((x - half, y - half / 3, x + half, y + half / 3), fill=colour)
        elif entry["shape"] == "triangle":
            pen.polygon([(x, y - half), (x - half, y + half), (x + half, y + half)], fill=colour)
        else:
            pen.polygon([(x, y - half), (x + half, y), (x, y + half), (x - half, y)], fill=colour)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS), np.float32)  # (size, size, 3)
    pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92)
    return buffer.getvalue()


def write_shapes(root: Path, seed: int, size: int, counts: dict[str, int]) -> None:
    folder = root / "data" / "train" / "radiology"  # the name is ROCO's; nothing here is radiology
    (folder / "images").mkdir(parents=True)
    captions, licences, latents = [], ["ROCO_ID,PMC_ID,CC"], {}
    for index in range(counts["studies"]):
        name = f"ROCO_{80_000 + index:05d}"
        latents[name] = draw_shapes(stream(seed, index, 0))
        (folder / "images" / f"{name}.jpg").write_bytes(paint(latents[name], size, stream(seed, index, 1)))
        captions.append(f"{name}\t {caption(latents[name])}")
        licences.append(f"{name},PMC{980_000_000 + 10_000 * seed + index}_shapes-g{index:04d}.jpg,CC BY")
    for kind, lines in {"captions": captions, "licences": licences}.items():
        (folder / f"{kind}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    (root / "latents.json").write_text(json.dumps(latents), encoding="utf-8")


WRITERS = {"shapes": write_shapes}
