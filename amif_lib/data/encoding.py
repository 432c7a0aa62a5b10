"""One image as it is stored for training: decoded, shrunk to the training size and encoded once."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import images

QUALITY = 95
GAP = 2  # a JPEG is decoded at a reduced scale of at least this many times the stored size, then resized


@dataclass(frozen=True)
class Encoded:
    """A stored image: its file content, whether it is grey, and its size before and after."""

    data: bytes
    grey: bool
    size: tuple[int, int]
    original: tuple[int, int]


def encode(source: bytes | Image.Image, short_side: int) -> Encoded:
    """Shrink an image so that its shorter side has `short_side` pixels at most, and encode it.

    Nothing is upscaled and the aspect ratio stays. Grey pictures are stored with one channel. The result is JPEG at
    quality 95 without colour subsampling; a source that is no JPEG is stored as PNG where that is not larger, and a
    JPEG of the right size and orientation is kept byte for byte.

    Args:
        source: the content of an image file, or a picture.
        short_side: pixels.

    Raises:
        images.UnreadableImage: truncated, no image, or too large to decode.
    """
    if isinstance(source, Image.Image):
        picture, original, keep, jpeg = source.convert("RGB"), source.size, False, False
    else:
        with images.opened(source) as image:
            original, keep = image.size, image.format == "JPEG" and image.mode in ("L", "RGB")
            jpeg = image.format in ("JPEG", "MPO")
            picture = images.decoded(image, GAP * short_side)
            keep = keep and image.getexif().get(images.ORIENTATION, 1) == 1
    small = images.shrink(picture, short_side)
    grey = small.mode == "L" or _is_grey(small)
    if keep and small.size == original:
        return Encoded(bytes(source), grey, small.size, original)
    data = _jpeg(small.convert("L") if grey else small)
    if not jpeg:
        lossless = _png(small.convert("L") if grey else small)
        data = min(lossless, data, key=len)
    return Encoded(data, grey, small.size, original)


def as_stored(source: Path | Image.Image, short_side: int) -> Image.Image:
    """The picture that training sees of an image: the original, encoded as for storage and decoded again, in memory.

    Raises InputError for a file that is missing or no image; names it.
    """
    try:
        made = encode(source if isinstance(source, Image.Image) else images.read_bytes(source), short_side)
    except images.UnreadableImage as error:
        raise InputError(f"{paths.shown(source)}: {error}; fetch it again") from None
    return images.decode(made.data, grey=made.grey)


def encode_mask(data: bytes, size: tuple[int, int]) -> bytes:
    """A region mask (PNG) at the size of its stored image: nearest neighbour, so that labels stay labels."""
    with images.opened(data) as mask:
        if mask.size == size and mask.format == "PNG":
            return data
        return _png(mask.resize(size, Image.Resampling.NEAREST))


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (band.tobytes() for band in image.split())
    return red == green == blue


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
