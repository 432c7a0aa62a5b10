"""Images: decode what real sets contain, resize, normalise, augment. Torch is imported by what returns tensors only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from amif_lib import paths
from amif_lib.errors import InputError

if TYPE_CHECKING:
    import torch

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's image statistics, per channel
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
GREY = (128, 128, 128)
Strength = Literal["strong", "light", "none"]


def load_rgb(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    16-bit and float grey is scaled from its own range to 0..255, transparency is laid on black, CMYK and palettes are
    converted and a camera's orientation tag is applied.

    Raises:
        InputError: the file is missing, truncated or no image; names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"{paths.shown(path)}: no such image; fetch it or remove the record that names it") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{paths.shown(path)}: truncated or not an image ({reason}); fetch it again") from None


def read_bytes(path: Path) -> bytes:
    """An image file's content; a missing one is an InputError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{paths.shown(path)}: cannot be read ({error.strerror}); fetch the image again") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey: a plain conversion would clip it
        pixels = np.asarray(image).astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        scaled = (pixels - low) * (255 / (high - low)) if high > low else np.zeros_like(pixels)
        image = Image.fromarray(np.rint(scaled).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def verify(files: Iterable[Path], description: str = "decoding images") -> int:
    """Decode every image once and return how many there are; a missing or truncated one raises (see `load_rgb`)."""
    unique = sorted(set(files))
    for path in tqdm(unique, desc=description, unit="image", mininterval=5, leave=False, disable=len(unique) < 500):
        load_rgb(path)
    return len(unique)


def contact_sheet(files: Sequence[Path], columns: int = 6, size: int = 128) -> Image.Image:
    """Small copies of the images side by side, aspect ratio kept, for looking at a data set."""
    sheet = Image.new("RGB", (columns * size, -(-len(files) // columns) * size))
    for place, path in enumerate(files):
        row, column = divmod(place, columns)
        sheet.paste(ImageOps.pad(load_rgb(path), (size, size)), (column * size, row * size))
    return sheet


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Resize to a square (bicubic, antialiased, aspect ratio not kept) and normalise: float32 `(3, size, size)`."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return _normalise(image)


def _normalise(image: Image.Image) -> torch.Tensor:
    import torch

    pixels = np.asarray(image, np.float32) / 255  # (size, size, 3)
    return torch.from_numpy(np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)))  # (3, size, size)


def blank(size: int) -> torch.Tensor:
    """The constant mid-grey image of the question-only baseline: float32 `(3, size, size)`."""
    return _normalise(Image.new("RGB", (size, size), GREY))


def augment(
    image: Image.Image, size: int, strength: Strength, *, flip: bool, colour: bool, rng: np.random.Generator
) -> torch.Tensor:
    """One random view of an image: float32 `(3, size, size)`.

    `strong` follows SimCLR: a crop of 20-100 % of the area, brightness and contrast, blur. `light`: a crop of 80-100 %,
    a little brightness and contrast, a few degrees of rotation. `none` is `to_tensor`. Left-right flips (which swap the
    side that a report names) and colour changes are made only where asked. All randomness comes from `rng`, so that a
    caller who keys it by seed, step and sample gets the same view in any process.
    """
    if strength == "none":
        return to_tensor(image, size)
    if strength not in ("strong", "light"):
        raise InputError(f"augmentation {strength!r} is not one of strong, light, none")
    strong = strength == "strong"
    if not strong:
        fill = tuple(int(x) for x in image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)))
        image = image.rotate(float(rng.uniform(-7, 7)), Image.Resampling.BILINEAR, fillcolor=fill)
    box = _crop_box(*image.size, (0.2, 1.0) if strong else (0.8, 1.0), rng)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    amount = 0.4 if strong else 0.15
    brightness, contrast = rng.uniform(1 - amount, 1 + amount, 2)
    pixels = np.asarray(image, np.float32) * np.float32(brightness)  # (size, size, 3)
    pixels = (pixels - pixels.mean()) * np.float32(contrast) + pixels.mean()
    if colour:
        grey = pixels.mean(axis=2, keepdims=True)  # (size, size, 1)
        saturation = 0.0 if rng.random() < 0.2 else rng.uniform(1 - amount, 1 + amount)
        pixels = (grey + (pixels - grey) * saturation) * rng.uniform(1 - amount / 4, 1 + amount / 4, 3)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if strong and rng.random() < 0.5:
        # SimCLR blurs with a kernel of a tenth of the image and sigma .1-2 at 224 px: scaled to this size
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.1, 2.0)) * size / 224))
    return _normalise(image)


def _crop_box(width: int, height: int, area: tuple[float, float], rng: np.random.Generator) -> tuple[float, ...]:
    """A random crop with the given share of the area and an aspect ratio within 3:4 and 4:3 of the image's own."""
    share, ratio = rng.uniform(*area), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(1.0, np.sqrt(share * ratio)), min(1.0, np.sqrt(share / ratio))
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return x * width, y * height, (x + w) * width, (y + h) * height
