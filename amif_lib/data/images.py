"""Image files as real sets have them, decoded to 8-bit pictures and encoded at training size; Pillow and numpy only."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from amif_lib.core import paths, progress
from amif_lib.core.errors import InputError

Item, Made = TypeVar("Item"), TypeVar("Made")

Image.MAX_IMAGE_PIXELS = 1 << 28  # Pillow refuses images with over twice as many, such as a scan of 25,000 px a side
FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "BMP", "WEBP", "JPEG2000", "PPM")
QUALITY = 95  # of stored JPEGs
MOST_BAD = 0.01  # share of a set's images that training may leave out since they cannot be decoded
ORIENTATION, PHOTOMETRIC, WHITE_IS_ZERO = 0x0112, 262, 0  # EXIF tag; TIFF tag and its value


class UnreadableImage(ValueError):
    """Bytes that are not a complete image; the message says what is wrong with them, without naming the file."""


def load_rgb(path: Path) -> Image.Image:
    """Decode an image file to 8-bit RGB (see `decode`). Raises InputError if it is missing or not a complete image."""
    try:
        return decode(path.read_bytes()).convert("RGB")
    except (OSError, UnreadableImage) as error:
        raise InputError(f"{paths.shown(path)}: {reason(error)}; fetch it again") from None


def reason(error: Exception) -> str:
    """Why an image file cannot be read or decoded, without naming it."""
    return getattr(error, "strerror", None) or str(error)


def decode(data: bytes) -> Image.Image:
    """Decode the content of an image file to 8-bit `L` or `RGB`.

    16-bit and float grey is scaled from its own range to 0..255, transparent pixels are blended with black, CMYK and
    palettes are converted, and a camera's orientation tag is applied. Raises UnreadableImage for content that is
    truncated, not an image, or too large.
    """
    with opened(data) as image:
        return _to_8bit(image)


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Open the content of an image file; what goes wrong with it inside the block is raised as UnreadableImage."""
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"too large to decode ({error})") from None
    except UnidentifiedImageError:  # its own text shows only a memory address
        raise UnreadableImage("truncated or not an image (no known image format)") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, IndexError, KeyError) as error:
        raise UnreadableImage(f"truncated or not an image ({' '.join(str(error).split())[:200]})") from None


def _to_8bit(image: Image.Image) -> Image.Image:
    """An image of any mode as upright 8-bit `L` or `RGB`."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):  # deep grey: a plain conversion would clip it
        pixels = np.asarray(image).astype(np.float32)
        inverted = image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
        return _scaled(-pixels if inverted else pixels)  # Pillow inverts only 8-bit TIFFs itself
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image.convert("RGBA")).convert("RGB")
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow assumes that every CMYK JPEG is inverted, as Adobe's are
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _scaled(pixels: np.ndarray) -> Image.Image:
    """Pixels (H, W) scaled from their own range to 8-bit grey; NaN and infinity become black."""
    finite = np.isfinite(pixels)
    low, high = (float(pixels[finite].min()), float(pixels[finite].max())) if finite.any() else (0.0, 0.0)
    scaled = (pixels - low) * (255 / (high - low)) if high > low else np.zeros_like(pixels)
    return Image.fromarray(np.rint(np.where(finite, scaled, 0)).astype(np.uint8))


def shrink(image: Image.Image, short_side: int) -> Image.Image:
    """The picture with its shorter side at most `short_side` pixels, aspect ratio kept; a smaller one as it is."""
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def encode(source: bytes, short_side: int) -> bytes:
    """An image file's content as it is stored for training: JPEG at quality 95, shorter side at most `short_side` px.

    Nothing is upscaled, the aspect ratio stays and grey pictures get one channel. A JPEG that already has this form is
    kept byte for byte. Raises UnreadableImage as `decode` does.
    """
    with opened(source) as image:
        size, mode, upright = image.size, image.mode, image.getexif().get(ORIENTATION, 1) == 1
        factor = max(1, min(size) // (2 * short_side))
        image.draft(None, (size[0] // factor, size[1] // factor))  # a JPEG can be halved while it is decoded
        picture = _reduced(image, short_side)
        ready = image.format == "JPEG" and upright and (picture.size, picture.mode) == (size, mode)
    return source if ready else _jpeg(picture)


def _reduced(image: Image.Image, short_side: int) -> Image.Image:
    picture = shrink(_to_8bit(image), short_side)
    pixels = np.asarray(picture)  # (H, W) or (H, W, 3)
    return picture.convert("L") if pixels.ndim == 3 and (pixels == pixels[..., :1]).all() else picture


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def as_stored(source: Path | Image.Image, short_side: int) -> Image.Image:
    """An image as training sees it: encoded as for storage and decoded again, in memory.

    Raises InputError, which names the file, if it is missing or not an image.
    """
    if isinstance(source, Image.Image):
        return decode(_jpeg(_reduced(source.copy(), short_side)))
    try:
        return decode(encode(source.read_bytes(), short_side))
    except (OSError, UnreadableImage) as error:
        raise InputError(f"{paths.shown(source)}: {reason(error)}; fetch it again") from None


def in_parallel(function: Callable[[Item], Made], items: Sequence[Item], description: str) -> Iterator[Made]:
    """`function` of each item in order, on all cores, with a progress bar.

    Threads suffice, since decoding and reading release Python's global lock; at most 256 results are held in memory.
    """
    bar = progress.bar(len(items), description, show=len(items) >= 500)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), 256):
            for made in pool.map(function, items[start : start + 256]):
                yield made
                bar.step()
    bar.close()
