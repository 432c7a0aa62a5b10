"""Images: decode what real sets contain, resize, normalise, augment. Torch is imported by what returns tensors only."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps, UnidentifiedImageError

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError
from amif_lib.data import sources

if TYPE_CHECKING:
    import torch

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # CLIP's image statistics, per channel
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SCALE, SHIFT = 1 / (255 * STD), MEAN / STD  # pixel value -> normalised value
LEVELS = np.arange(256)
GREY = 128
Strength = Literal["strong", "light", "none"]

# Pillow's own limit fails on whole-slide and scanned images of 20,000 px a side. What bounds memory here is `LARGE`:
# above it a picture is decoded at a reduced scale (JPEG) or reduced strip by strip, one such picture at a time.
Image.MAX_IMAGE_PIXELS = None
LARGE = 1 << 25  # pixels; also the most that a decoded picture has
MOST_BYTES = 1_750_000_000  # of one decoded picture before it is reduced
FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM")
_one_large = threading.Lock()
ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


class UnreadableImage(ValueError):
    """Bytes that are no whole image; the message says what is wrong with them, without naming the file."""


def load_rgb(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    16-bit and float grey is scaled from its own range to 0..255, transparency is laid on black, CMYK (inverted where
    Adobe's mark says so) and palettes are converted and a camera's orientation tag is applied. A picture of more than
    `LARGE` pixels is reduced to at most so many.

    Raises:
        InputError: the file is missing, truncated or no image; names it.
    """
    if not path.exists():
        raise InputError(f"{paths.shown(path)}: no such image; fetch it or remove the record that names it")
    try:
        return decode(read_bytes(path)).convert("RGB")
    except UnreadableImage as error:
        raise InputError(f"{paths.shown(path)}: {error}; fetch it again") from None


def read_bytes(path: Path) -> bytes:
    """An image file's content; a missing one is an InputError that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{paths.shown(path)}: cannot be read ({error.strerror}); fetch the image again") from None


def decode(data: bytes, short_side: int = 0, grey: bool = False) -> Image.Image:
    """Decode an image to 8-bit `L` or `RGB`; see `load_rgb`.

    Args:
        data: the content of an image file.
        short_side: the picture may be decoded at a reduced scale whose shorter side is at least so many pixels (0: only
            where it has more than `LARGE` pixels).
        grey: the picture is known to be grey: a JPEG's colour planes are not decoded.

    Raises:
        UnreadableImage: truncated, no image, or too large to decode.
    """
    with opened(data) as image:
        return decoded(image, short_side, grey)


def decoded(image: Image.Image, short_side: int = 0, grey: bool = False) -> Image.Image:
    """`decode` of a file that is open (`opened`)."""
    full = image.width * image.height
    if image.format in ("JPEG", "MPO"):
        _draft(image, short_side, grey)
    if (need := _decoded_bytes(image, full)) > MOST_BYTES:
        raise UnreadableImage(f"too large to decode ({image.width} x {image.height}, {need / 1e9:.1f} GB)")
    if full <= LARGE:
        image.load()
        return _turn(_to_8bit(image), image)
    with _one_large:
        image.load()
        return _turn(_reduce(image, short_side), image)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image file with this content, header read; what goes wrong with it inside the block is an UnreadableImage."""
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except UnreadableImage:
        raise
    except UnidentifiedImageError:  # whose text names an object in memory
        raise UnreadableImage("truncated or not an image (no known image format)") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, IndexError, KeyError) as error:
        raise UnreadableImage(f"truncated or not an image ({' '.join(str(error).split())[:200]})") from None


def _draft(image: Image.Image, short_side: int, grey: bool) -> None:
    """Let the JPEG decoder leave out colour, and halve the picture as often as its size allows."""
    side = min(image.size)
    factor = side // short_side if short_side else 1
    while image.width * image.height > LARGE * factor**2 and factor < 8:
        factor += 1
    image.draft("L" if grey else None, (image.width // factor, image.height // factor) if factor > 1 else None)


def _decoded_bytes(image: Image.Image, full: int) -> int:
    """Memory that decoding takes: Pillow holds 1, 2 or 4 bytes a pixel, and a progressive JPEG all its coefficients."""
    each = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    coefficients = 0.0
    if "progressive" in image.info:  # two bytes each, as many as there are samples
        shares = [h * v for _, h, v, _ in image.layer]
        coefficients = 2 * full * sum(shares) / max(shares)
    return each * image.width * image.height + int(coefficients)


def _to_8bit(image: Image.Image) -> Image.Image:
    """Any mode as `L` or `RGB`."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey: a plain conversion would clip it
        return _scaled(np.asarray(image).astype(np.float32))
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every CMYK JPEG for Adobe's, which are stored inverted
    return image.convert("L" if image.mode == "1" else "RGB")


def _scaled(pixels: np.ndarray) -> Image.Image:
    """Numbers (H, W) as 8-bit grey, their own range becoming 0..255; what is not a number is black."""
    finite = np.isfinite(pixels)
    low, high = (float(pixels[finite].min()), float(pixels[finite].max())) if finite.any() else (0.0, 0.0)
    scaled = (pixels - low) * (255 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(np.rint(np.where(finite, scaled, 0)).astype(np.uint8))


def _reduce(image: Image.Image, short_side: int) -> Image.Image:
    """A large picture as `L` or `RGB` of at most `LARGE` pixels: means over squares, strip by strip (see `decode`)."""
    factor = int(np.ceil(np.sqrt(image.width * image.height / LARGE)))
    factor = max(factor, min(image.size) // short_side if short_side else 1)
    if factor == 1:
        return _to_8bit(image)
    deep = image.mode.startswith(("I", "F"))
    height = factor * max(1, (1 << 22) // (factor * image.width))  # about four million pixels a strip
    parts = []
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        strip.info, strip.format = image.info, image.format
        small = Image.fromarray(np.asarray(strip).astype(np.float32)) if deep else _to_8bit(strip)
        parts.append(np.asarray(small.reduce(factor)))
    pixels = np.concatenate(parts)
    return _scaled(pixels) if deep else Image.fromarray(pixels)


def _turn(picture: Image.Image, source: Image.Image) -> Image.Image:
    turn = TURNS.get(source.getexif().get(ORIENTATION, 1))
    return picture.transpose(turn) if turn is not None else picture


def trouble(path: Path) -> str:
    """Why an image file cannot be decoded, without naming it; empty where it can."""
    try:
        decode(path.read_bytes())
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    return ""


def verify(files: Iterable[Path], description: str = "decoding images") -> tuple[int, dict[Path, str]]:
    """Decode every image once, on all cores: how many there are, and the bad ones in order of their names, with the reason."""
    unique, bad = sorted(set(files)), {}
    bar = progress.bar(len(unique), description, show=len(unique) >= 500)
    for path, reason in zip(unique, sources.in_order(trouble, unique), strict=True):
        if reason:
            bad[path] = reason
        bar.step()
    bar.close()
    return len(unique), bad


def contact_sheet(files: Sequence[Path], columns: int = 6, size: int = 128) -> Image.Image:
    """Small copies of the images side by side, aspect ratio kept, for looking at a data set."""
    sheet = Image.new("RGB", (columns * size, -(-len(files) // columns) * size))
    for place, path in enumerate(files):
        row, column = divmod(place, columns)
        sheet.paste(ImageOps.pad(load_rgb(path), (size, size)), (column * size, row * size))
    return sheet


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """The picture with its shorter side at most `short_side` pixels, aspect ratio kept; a smaller one as it is."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Resize to a square (bicubic, antialiased, aspect ratio not kept) and normalise: float32 `(3, size, size)`."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return _normalise(np.asarray(image))


def _normalise(pixels: np.ndarray) -> torch.Tensor:
    import torch

    out = np.empty((3, *pixels.shape[:2]), np.float32)  # from (H, W) or (H, W, 3), uint8
    for channel in range(3):
        plane = pixels if pixels.ndim == 2 else pixels[..., channel]
        np.multiply(plane, SCALE[channel], out=out[channel])
        out[channel] -= SHIFT[channel]
    return torch.from_numpy(out)


def blank(size: int) -> torch.Tensor:
    """The constant mid-grey image of the question-only baseline: float32 `(3, size, size)`."""
    return _normalise(np.full((size, size), GREY, np.uint8))


def augment(
    image: Image.Image, size: int, strength: Strength, *, flip: bool, colour: bool, rng: np.random.Generator
) -> torch.Tensor:
    """One random view of an image (`L` or `RGB`): float32 `(3, size, size)`.

    `strong` follows SimCLR: a crop of 20-100 % of the area, brightness and contrast, blur. `light`: a crop of 80-100 %,
    a little brightness and contrast, a few degrees of rotation. `none` is `to_tensor`. Left-right flips (which swap the
    side that a report names) and colour changes are made only where asked. All randomness comes from `rng`, so that a
    caller who keys it by seed, step and sample gets the same view in any process. A grey picture in mode `L` gives the
    view that it gives in mode `RGB`, in a third of the time.
    """
    if strength == "none":
        return to_tensor(image, size)
    if strength not in ("strong", "light"):
        raise InputError(f"augmentation {strength!r} is not one of strong, light, none")
    strong = strength == "strong"
    if not strong:
        mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        image = image.rotate(float(rng.uniform(-7, 7)), Image.Resampling.BILINEAR, fillcolor=mean)
    box = _crop_box(*image.size, (0.2, 1.0) if strong else (0.8, 1.0), rng)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    amount = 0.4 if strong else 0.15
    brightness, contrast = rng.uniform(1 - amount, 1 + amount, 2)
    if colour:
        pixels = _recolour(image, brightness, contrast, amount, rng)
    else:  # p -> mean + (brightness * p - mean) * contrast, as a table of the 256 values
        pixels = np.asarray(image)  # (size, size) or (size, size, 3)
        mean = brightness * float(pixels.mean())
        pixels = np.clip((LEVELS * brightness - mean) * contrast + mean, 0, 255).astype(np.uint8).take(pixels)
    if strong and rng.random() < 0.5:
        # SimCLR blurs with a kernel of a tenth of the image and sigma .1-2 at 224 px: scaled to this size
        blur = ImageFilter.GaussianBlur(float(rng.uniform(0.1, 2.0)) * size / 224)
        pixels = np.asarray(Image.fromarray(pixels).filter(blur))
    return _normalise(pixels)


def _recolour(
    image: Image.Image, brightness: float, contrast: float, amount: float, rng: np.random.Generator
) -> np.ndarray:
    """Brightness and contrast, then saturation (grey in a fifth of the cases) and a tint."""
    pixels = np.asarray(image.convert("RGB"), np.float32) * np.float32(brightness)  # (size, size, 3)
    pixels = (pixels - pixels.mean()) * np.float32(contrast) + pixels.mean()
    grey = pixels.mean(axis=2, keepdims=True)  # (size, size, 1)
    saturation = 0.0 if rng.random() < 0.2 else rng.uniform(1 - amount, 1 + amount)
    pixels = (grey + (pixels - grey) * saturation) * rng.uniform(1 - amount / 4, 1 + amount / 4, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _crop_box(width: int, height: int, area: tuple[float, float], rng: np.random.Generator) -> tuple[float, ...]:
    """A random crop with the given share of the area and an aspect ratio within 3:4 and 4:3 of the image's own."""
    share, ratio = rng.uniform(*area), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(1.0, np.sqrt(share * ratio)), min(1.0, np.sqrt(share / ratio))
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return x * width, y * height, (x + w) * width, (y + h) * height
