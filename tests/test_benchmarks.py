"""The data-feed benchmark: that it times what it says, on real shards, and writes ratios of its own rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from amif_lib import paths
from amif_lib.benchmarks import feed
from amif_lib.datasets import encoding


def films(folder: Path, count: int = 3) -> list[Path]:
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (9, 9)).astype(np.uint8)
        Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    return sorted(folder.glob("*.jpg"))


def test_every_way_does_its_work_on_the_same_pictures(tmp_path: Path) -> None:
    files = films(tmp_path)
    (tmp_path / "shards").mkdir()
    pictures = feed.prepare(files, 64, tmp_path / "shards")
    for path, image_id in zip(files, pictures.row, strict=True):
        assert np.array_equal(np.asarray(pictures[image_id]), np.asarray(encoding.as_stored(path, 71)))
    ways = feed._ways(files, pictures, 64, number=0)
    assert set(ways) == set(feed.WAYS)
    found = {way: run() for way, run in ways.items()}
    assert all(len(made) == 3 for made in found.values())  # type: ignore[arg-type]
    for first, second in zip(found["originals, augmented"], found["prepared, augmented"], strict=True):  # type: ignore[call-overload]
        assert first.shape == second.shape == (3, 64, 64)
        assert torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] > 0.99
    for first, second in zip(found["blur, torchvision"], found["blur, Pillow"], strict=True):  # type: ignore[call-overload]
        assert np.abs(first[0].numpy().astype(float) - second.astype(float)).mean() < 2  # the same blur, both ways


def test_ratios_are_those_of_the_rates_and_the_machine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(feed, "sets_of", lambda scale, count: {"mine": films(tmp_path)[:count]})
    monkeypatch.setattr(feed, "generated", lambda folder, count: films(folder, 2))
    file = feed.write("demo", 32, 3, 1)
    assert file == paths.results() / "demo" / "benchmarks" / "feed.csv"
    rates = pd.read_csv(file)
    assert sorted(rates.groupby("data_set").size().items()) == [(feed.GENERATED, 5), ("mine", 5)]
    rate = rates.set_index(["data_set", "way"])["images_per_second_per_core"]
    for row in rates.dropna(subset="ratio").itertuples():
        assert row.ratio == pytest.approx(rate[row.data_set, row.way] / rate[row.data_set, row.compared_with], rel=0.02)
    assert rates["ratio"].isna().sum() == 4 and rates["cpu"].str.len().min() > 0
    assert rates["torch"].iloc[0] == torch.__version__.partition("+")[0] or rates["torch"].iloc[0] == torch.__version__


def test_generated_films_are_larger_than_training_needs(tmp_path: Path) -> None:
    (file,) = feed.generated(tmp_path, 1)
    with Image.open(file) as film:
        assert film.size == (feed.FILM, feed.FILM) and film.format == "JPEG"
