"""Decoding of what real sets contain (against Pillow), and the network's input, normalised and augmented."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageOps

from amif_lib.core.errors import InputError
from amif_lib.data import images
from amif_lib.networks import pixels

RAMP = np.linspace(0, 255, 64)


def ramp(mode: str) -> Image.Image:
    """A left-to-right ramp in the given mode."""
    row = np.tile(RAMP.astype(np.uint8), (48, 1))
    if mode in ("I;16", "I", "F"):
        values = row.astype(np.float32) * 16  # 12-bit range, as DICOM exports have
        return Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    grey = Image.fromarray(row)
    if mode == "P":
        return grey.convert("RGB").quantize(64)
    if mode == "CMYK":
        return grey.convert("RGB").convert("CMYK")
    if mode in ("RGBA", "LA"):
        image = grey.convert(mode)
        image.putalpha(255)
        return image
    return grey.convert(mode)


def row_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), float).mean(axis=0)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("RGB", "jpg"), ("CMYK", "jpg"), ("CMYK", "tif"), ("P", "png"), ("P", "gif"), ("RGBA", "png"),
     ("LA", "png"), ("I;16", "png"), ("I;16", "tif"), ("I", "tif"), ("F", "tif"), ("1", "png")],
)  # fmt: skip
def test_every_mode_decodes_to_the_same_ramp(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"ramp image.{suffix}"
    ramp(mode).save(path)
    image = images.load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    if mode != "1":
        assert np.abs(row_of(image) - RAMP).max() < 8


def test_inks_without_adobes_mark_are_not_inverted(tmp_path: Path) -> None:
    """Adobe's CMYK JPEGs hold inverted inks; a CMYK JPEG without the mark holds them as they are."""
    path = tmp_path / "inks.jpg"
    ImageChops.invert(ramp("CMYK")).save(path, quality=95)  # Pillow inverts and marks what it saves
    content = path.read_bytes()
    mark = content.index(b"Adobe") - 4
    length = int.from_bytes(content[mark + 2 : mark + 4], "big")
    path.write_bytes(content[:mark] + content[mark + 2 + length :])
    assert np.abs(row_of(images.load_rgb(path)) - RAMP).max() < 8


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([200, 10, 10, 10, 200, 10])
    image.paste(1, (4, 0, 8, 8))
    image.save(tmp_path / "palette.png", transparency=bytes([255, 0]))
    found = np.asarray(images.load_rgb(tmp_path / "palette.png"))
    assert (found[:, :4] == (200, 10, 10)).all() and (found[:, 4:] == 0).all()


def test_deep_grey_keeps_its_own_range_and_numbers_that_are_none_are_black(tmp_path: Path) -> None:
    values = np.array([[1000, 2000], [3000, 5000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = np.rint((values - 1000.0) * 255 / 4000)
    assert (np.asarray(images.load_rgb(tmp_path / "deep.png"))[..., 0] == expected).all()
    Image.fromarray(np.array([[np.nan, 1], [np.inf, 3]], np.float32)).save(tmp_path / "float.tif")
    assert np.asarray(images.load_rgb(tmp_path / "float.tif"))[..., 0].tolist() == [[0, 0], [0, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_turned_camera_gives_an_upright_picture_at_any_scale(tmp_path: Path, orientation: int, suffix: str) -> None:
    corner = np.zeros((256, 384), np.uint8)
    corner[:128, :128] = 250
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(corner).convert("RGB").save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("L")
    content = path.read_bytes()
    for found in (images.decode(content), images.as_stored(path, 32)):
        small = expected.resize(found.size, Image.Resampling.BOX)
        assert (found.width > found.height) == (expected.width > expected.height)
        assert np.abs(row_of(found) - row_of(small)).mean() < 4


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_missing_and_false_images_are_named(tmp_path: Path, suffix: str) -> None:
    cut, text, empty, gone = (tmp_path / f"{name}.{suffix}" for name in ("cut", "text", "void", "none"))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_text("<html>not found</html>", encoding="utf-8")
    empty.touch()
    said = {cut: "truncated", text: "not an image", empty: "empty file; fetch it again", gone: "No such file"}
    for path, message in said.items():
        with pytest.raises(InputError, match=message) as caught:
            images.load_rgb(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_what_would_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 50_001)))
    with pytest.raises(InputError, match=r"huge.png: too large to decode"):
        images.load_rgb(tmp_path / "huge.png")


def test_a_stored_jpeg_is_kept_and_grey_has_one_channel(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg", quality=70)
    content = (tmp_path / "photo.jpg").read_bytes()
    assert images.encode(content, 40) == content and images.encode(content, 39) != content
    grey = Image.fromarray(noise[..., 0]).convert("RGB")
    out = io.BytesIO()
    grey.save(out, "PNG")
    made = images.decode(images.encode(out.getvalue(), 40))
    assert made.mode == "L" and np.abs(np.asarray(made, float) - noise[..., 0]).mean() < 2
    thin = Image.new("RGB", (3000, 2), (9, 90, 200))
    assert images.as_stored(thin, 8).size == thin.size


# --- the network's input ---------------------------------------------------------------------------------------------


def values(view: torch.Tensor) -> torch.Tensor:
    """A normalised view in pixel values 0..255."""
    return (view * pixels.STD[:, None, None] + pixels.MEAN[:, None, None]) * 255


def test_input_is_the_resized_image_in_open_clips_normalisation() -> None:
    constants = pytest.importorskip("open_clip.constants")
    mean, std = constants.OPENAI_DATASET_MEAN, constants.OPENAI_DATASET_STD
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    found = pixels.to_tensor(image, 32)
    assert found.shape == (3, 32, 32) and found.dtype == torch.float32
    expected = (np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float64) / 255 - mean) / std
    assert np.abs(found.numpy().transpose(1, 2, 0) - expected).max() < 1e-5
    assert torch.equal(pixels.augment(image, 32, "none", pixels.keyed(0)), found)
    assert torch.allclose(values(pixels.blank(16)), torch.full((3, 16, 16), 128.0), atol=1e-3)


@pytest.mark.parametrize("strength", ["strong", "light"])
def test_a_view_depends_on_its_generator_alone_and_keeps_sides_and_grey(strength: str) -> None:
    image = ramp("L")
    views = [pixels.augment(image, 32, strength, pixels.keyed(5, 7, n)) for n in (1, 1, 2, *range(3, 40))]
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    for view in views:
        shown = values(view)
        assert view.shape == (3, 32, 32) and (shown - shown[:1]).abs().max() < 1e-2  # grey stays grey
        assert np.polyfit(np.arange(32), shown.mean(dim=(0, 1)).numpy(), 1)[0] > 0  # left stays left


@pytest.mark.parametrize("bits", [8, 16])
def test_a_minimum_is_white_tiff_is_no_negative(tmp_path: Path, bits: int) -> None:
    """A TIFF whose PhotometricInterpretation is 0 stores white as 0: the ramp is saved inverted and read upright."""
    values = (65535 * (1 - np.tile(RAMP, (48, 1)) / 255)).astype(np.uint16)
    stored = values.astype("<u2").tobytes() if bits == 16 else (values >> 8).astype(np.uint8).tobytes()
    tags = [(256, 64), (257, 48), (258, bits), (259, 1), (262, 0), (273, 8), (277, 1), (278, 48), (279, len(stored))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(stored))
    path = tmp_path / "negative.tif"
    path.write_bytes(head + stored + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))
    assert np.abs(row_of(images.load_rgb(path)) - RAMP).max() < 2
