"""The data feed: images a second that one core reads and augments, from prepared shards and from the originals.

The ways are timed in turn, round after round, in processor time, so that other work on the machine falls on all alike.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from amif_lib.app.benchmarks import processor
from amif_lib.core import paths, progress
from amif_lib.core.files import write_aside
from amif_lib.data import images, manifests, prepared, shards
from amif_lib.experiments import rows as experiments
from amif_lib.networks.sizes import stored_side
from amif_lib.phantom import generate as phantom

GENERATED = "generated at film size"
FILM = 2048  # pixels; a radiograph of MIMIC-CXR-JPG has about 2,500 x 3,000
# Each way, and the way that its ratio compares it with.
WAYS = {
    "originals, augmented": "",
    "prepared, augmented": "originals, augmented",
    "prepared, decoded": "prepared, augmented",
    "blur, torchvision": "",
    "blur, Pillow": "blur, torchvision",
}


def write(scale: str, image_size: int = 288, count: int = 200, repeats: int = 3) -> Path:
    """Measure every set of a scale that is at hand, and pictures of a radiograph's size; writes and returns the CSV."""
    target = paths.scale_dir(scale) / "benchmarks" / "feed.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sets = {GENERATED: generated(Path(folder), min(count, 32))} | sets_of(scale, count)
        bar = progress.bar(len(sets) * repeats, "timing the data feed")
        frame = pd.concat(
            [measure(files, image_size, repeats, bar.step).assign(data_set=name) for name, files in sets.items()]
        )
        bar.close()
    frame = frame[["data_set", *frame.columns.drop("data_set")]].assign(**machine())
    with write_aside(target) as aside:
        frame.to_csv(aside, index=False)
    return target


def sets_of(scale: str, count: int) -> dict[str, list[Path]]:
    """Up to `count` image files of each data set of a scale that is on disk or can be generated, spread over the set."""
    from amif_lib.data import load as datasets

    settings = experiments.scale_settings(scale)
    found = {}
    for name in dict.fromkeys((*settings["data"]["pretrain"], *settings["question_sets"])):
        manifest = manifests.load(name)
        if manifest.generator or manifests.folder_of(manifest).is_dir():
            files = datasets.image_paths(name)
            found[name] = files[:: max(1, len(files) // count)][:count]
    return found


def generated(folder: Path, count: int) -> list[Path]:
    """Synthetic radiographs of `FILM` pixels a side, as JPEG: the phantom's pictures enlarged, with film grain."""
    phantom.generate(folder / "small", "mimic_cxr", 40, 256, {"studies": count})
    sources = sorted((folder / "small").rglob("*.jpg"))[:count]
    for number, source in enumerate(sources):
        grain = np.random.default_rng(number).normal(0, 4, (FILM, FILM))
        film = np.asarray(images.load_rgb(source).convert("L").resize((FILM, FILM)), np.float32) + grain
        Image.fromarray(np.clip(film, 0, 255).astype(np.uint8)).save(folder / f"film{number:03d}.jpg", quality=90)
    return sorted(folder.glob("film*.jpg"))


def prepare(files: Sequence[Path], image_size: int, folder: Path) -> prepared.Pictures:
    """Shards of these files in `folder`, as training reads them; ids are the files' positions."""
    entries = [shards.Entry(f"{number:06d}", path, "", None) for number, path in enumerate(files)]
    shard = folder / "images-00000.parquet"
    bar = progress.bar(len(files), "preparing", show=False)
    shards.write(shard, shards.schema(), folder, stored_side(image_size), entries, bar)
    pq.write_table(shards.index(shard, 0), folder / "index.parquet")
    return prepared.Pictures([folder])


def measure(
    files: Sequence[Path], image_size: int, repeats: int, done: Callable[[], None] = lambda: None
) -> pd.DataFrame:
    """Images a second and core of each of `WAYS`, strong augmentation: the median of `repeats` interleaved rounds.

    Columns `way, image_size, images, repeats, images_per_second_per_core, compared_with, ratio`.
    """
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder, one_thread():
        pictures = prepare(files, image_size, Path(folder))
        for number in range(repeats):
            for way, run in _ways(files, pictures, image_size, number).items():
                start = time.process_time()
                run()
                seconds[way].append(time.process_time() - start)
            done()
    rates = {way: len(pictures) / float(np.median(values)) for way, values in seconds.items()}
    rows = [
        {
            "way": way,
            "image_size": image_size,
            "images": len(pictures),
            "repeats": repeats,
            "images_per_second_per_core": round(rates[way], 1),
            "compared_with": other,
            "ratio": round(rates[way] / rates[other], 2) if other else None,
        }
        for way, other in WAYS.items()
    ]
    return pd.DataFrame(rows)


def _ways(
    files: Sequence[Path], pictures: prepared.Pictures, size: int, number: int
) -> dict[str, Callable[[], object]]:
    """What is timed, each over all images; the views of a round are the same for all."""
    import torch
    from torchvision.transforms.v2 import functional

    def view(image: Image.Image, index: int) -> torch.Tensor:
        rng = np.random.default_rng((number, index))
        return images.augment(image, size, "strong", flip=False, colour=False, rng=rng)

    squares = [np.asarray(pictures[image_id].resize((size, size))) for image_id in pictures.row]
    planes = [torch.from_numpy(np.atleast_3d(square).transpose(2, 0, 1).copy()) for square in squares]
    sigma, kernel = 1.05 * size / 224, size // 10 | 1  # the mean of what is drawn, and SimCLR's tenth of the image
    blur = ImageFilter.GaussianBlur(sigma)
    return {
        "originals, augmented": lambda: [view(images.load_rgb(path), i) for i, path in enumerate(files)],
        "prepared, augmented": lambda: [view(pictures[image_id], i) for i, image_id in enumerate(pictures.row)],
        "prepared, decoded": lambda: [pictures[image_id] for image_id in pictures.row],
        "blur, torchvision": lambda: [functional.gaussian_blur(plane, [kernel] * 2, [sigma] * 2) for plane in planes],
        "blur, Pillow": lambda: [np.asarray(Image.fromarray(square).filter(blur)) for square in squares],
    }


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads for the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread() -> contextlib.AbstractContextManager[None]:
    """Torch on one thread for the block, so that a rate is one core's."""
    return on_threads(1)


def machine() -> dict[str, str | int]:
    """The processor and the versions that the rates hang on."""
    found = {name: metadata.version(name) for name in ("pillow", "numpy", "pyarrow", "torch", "torchvision")}
    return {"cpu": processor(), "cores": os.cpu_count() or 1, "python": platform.python_version()} | found
