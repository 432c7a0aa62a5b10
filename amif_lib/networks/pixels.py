"""Pictures as the network's input: resized to a square, normalised, and varied at random for training."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's image statistics, per channel
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
SCALE, SHIFT = (1 / (255 * STD))[:, None, None], (-MEAN / STD)[:, None, None]  # pixel value -> normalised value
GREY = 128
# Least share of the area that a crop keeps, largest change of brightness and contrast, degrees of rotation, share of
# views that are blurred. Strong follows SimCLR (Chen et al. 2020, appendix A) without colour, and its crop ConVIRT
# (Zhang et al. 2020), since a smaller one leaves out what the report names; flips would swap sides.
STRENGTHS = {"strong": (0.6, 0.4, 0.0, 0.5), "light": (0.8, 0.15, 7.0, 0.0)}


def to_tensor(image: Image.Image, size: int) -> Tensor:
    """Resize to a square (bicubic, antialiased, aspect ratio not kept) and normalise: float32 `(3, size, size)`."""
    return normalise(pixels(image.resize((size, size), Image.Resampling.BICUBIC)))


def pixels(image: Image.Image) -> Tensor:
    """The values 0..255 of a picture as float32: `(1, H, W)` from mode `L`, `(3, H, W)` from `RGB`."""
    return torch.from_numpy(np.stack([np.asarray(band) for band in image.split()])).float()


def normalise(values: Tensor) -> Tensor:
    """Standardise values 0..255, `(1, H, W)` or `(3, H, W)`, by CLIP's mean and deviation: `(3, H, W)`."""
    return torch.mul(values, SCALE).add_(SHIFT)


def blank(size: int) -> Tensor:
    """The constant mid-grey image of the question-only baseline: float32 `(3, size, size)`."""
    return normalise(torch.full((1, size, size), float(GREY)))


def keyed(*numbers: int) -> torch.Generator:
    """A random stream of its own for each tuple of numbers, such as (seed, stage, step, sample)."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def augment(image: Image.Image, size: int, strength: str, generator: torch.Generator) -> Tensor:
    """One random view of a picture (`L` or `RGB`), drawn with `generator`: float32 `(3, size, size)`.

    `strength` is `strong`, `light` (see `STRENGTHS`) or `none`, which is `to_tensor`. Crops, resizing and blur are
    Pillow's: torchvision's blur alone takes longer than the rest together.
    """
    if strength == "none":
        return to_tensor(image, size)
    least, amount, degrees, blurred = STRENGTHS[strength]
    share, ratio, x, y, turn, brightness, contrast, blurs, sigma = torch.rand(9, generator=generator).tolist()
    if degrees:
        mean = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        image = image.rotate(degrees * (2 * turn - 1), Image.Resampling.BILINEAR, fillcolor=mean)
    kept, shape = least + (1 - least) * share, (4 / 3) ** (2 * ratio - 1)  # of the area; width to height, 3:4 to 4:3
    w, h = min(1.0, math.sqrt(kept * shape)), min(1.0, math.sqrt(kept / shape))  # of the crop, as shares of the sides
    left, upper, (width, height) = x * (1 - w), y * (1 - h), image.size
    box = (left * width, upper * height, (left + w) * width, (upper + h) * height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if blurs < blurred:  # SimCLR: sigma 0.1 to 2 at 224 px
        image = image.filter(ImageFilter.GaussianBlur((0.1 + 1.9 * sigma) * size / 224))
    values = pixels(image)
    b, c = (1 + amount * (2 * draw - 1) for draw in (brightness, contrast))
    mean = b * values.mean()
    return normalise(values.mul_(b * c).add_(mean * (1 - c)).clamp_(0, 255))  # mean + (b p - mean) c
