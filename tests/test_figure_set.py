"""Every figure from made-up runs: what is drawn, what its numbers are, what is left out and why."""

from __future__ import annotations

import os
import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import redistribution
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.reporting import figure_set, map_figures, map_files, map_scores, result_figures, tables
from amif_lib.reporting.map_files import Maps
from tests import fabricated

SIDE, N = 8, 12
WORDS = ("nodule", "mass", "infarct", "ascites")
FIGURES = {
    "fig4_local_alignment",
    "fig5_gated_attention",
    "fig6_lambda",
    "map_scores_stage2",
    "map_scores_finetune",
    "training_curves",
    "soft_labels",
    "hard_negatives",
    "accuracy_by_type",
    "calibration",
    "run_costs",
}
LAMBDAS = (0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)


def made_up_maps(data_set: str, names: tuple[str, ...], seed: int, looks: float) -> Maps:
    """Maps that put a share `looks` on the region and the rest anywhere."""
    rng = np.random.default_rng(seed)
    coverage = np.zeros((N, SIDE, SIDE))
    for i in range(N):
        coverage[i, i % 6 : i % 6 + 2, (3 * i) % 7] = 1
    values = {}
    for name in names:
        noise = rng.random((N, SIDE, SIDE))
        values[name] = looks * coverage / 2 + (1 - looks) * noise / noise.sum((1, 2), keepdims=True)
    words = [WORDS[i % 4] for i in range(N)]
    texts = [f"Which side is the {word} on, as far as can be seen?" for word in words]
    ids = [f"q{i}" for i in range(N)]
    maps = Maps(data_set, ids, [f"i{i // 2}" for i in range(N)], words, words, texts, coverage, values, [0, 3])
    maps.pictures = rng.integers(0, 255, (2, 96, 96)).astype(np.uint8)
    maps.outlines = np.stack([np.kron(coverage[i], np.ones((12, 12))) for i in (0, 3)]).astype(bool)
    return maps


def store(run, names, looks):
    data_set = run.data.questions if run.stage == "finetune" else "phantom_teacher"
    folder = fabricated.write_run(run) if run.stage != "finetune" else run.directory
    map_files.write(folder / map_files.MAPS, made_up_maps(data_set, names, 0, looks))
    fresh = made_up_maps(data_set, names, 1, 0.0)
    map_files.write(map_scores.untrained_file(run, data_set), fresh)


def make(folder) -> None:
    values = experiments.row_names("lambda_sweep", "demo")
    fabricated.write_table("lambda_sweep", "demo", {row: tuple(range(n)) for n, row in enumerate(reversed(values))})
    fabricated.write_table("table1", "demo", {"demo": (0, 5), "published3064": ()})  # the sweep's 0.01 as well
    for table, rows in (("table2", {"4": 0.1, "8": 0.6}), ("table4", {"5": 0.2, "6": 0.5})):
        for row in experiments.rows(table, "demo", only=tuple(rows)):
            for tip in row.runs:
                for run in tip.lineage():
                    if run.stage == "stage2" and table == "table2":  # Table 4 shares that of row 8
                        store(run, ("transport_plan", "attention"), rows[row.row])
                    elif run.stage == "finetune":
                        if not results.is_finished(run):
                            fabricated.write_run(run, fabricated.wrong_at(0))
                        gate = ("gate",) if run.knowledge.gate else ()
                        store(run, ("transport_plan", "attention", *gate), rows[row.row])
    full = experiments.rows("table1", "demo")[0].runs[0].lineage()
    rng = np.random.default_rng(0)
    arrays = {"version": np.array(map_files.VERSION), "ids": np.array(list("abcdef"))}
    arrays["findings"] = np.array(["nodule", "", "nodule", "mass; infarct", "", ""])
    for pair in ("i2t", "t2t"):
        for panel in ("teacher", "labels", "student"):
            arrays[f"{pair}_{panel}"] = rng.dirichlet(np.full(6, 0.3), 6).astype(np.float16)
    map_files.write_arrays(full[0].directory / map_files.SOFT_LABELS, arrays)
    lines = [
        {
            "step": 9, "pair": pair, "id": f"s{i}", "negative_id": f"s{i + 1}", "probability": 0.4, "uniform": 0.1,
            "rank": 1, "findings": "nodule", "negative_findings": "nodule" if i < 3 else "", "same_findings": i < 3,
            "p_same": 0.3, "uniform_same": 0.2, "text": f"A nodule, number {i}. " * 12, "negative_text": "Nothing.",
        }
        for pair in ("image_text", "text_text") for i in range(8)
    ]  # fmt: skip
    pd.DataFrame(lines).to_csv(full[1].directory / map_files.HARD_NEGATIVES, index=False)


SETS = ("phantom_vqa_rad", "phantom_slake")


def quicken(patch) -> None:
    """Three tables."""
    patch.setattr(figure_set, "tables_of", lambda scale: ("table1", "table2", "table4"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("a folder with spaces")
        fabricated.install(patch, folder, SETS)
        quicken(patch)
        make(folder)
        yield {path.name: path for path in figure_set.draw_all("demo")}


def numbers(drawn, name) -> pd.DataFrame:
    return pd.read_csv(drawn[f"{name}.csv"], dtype={"row": str})


def test_every_figure_comes_with_its_numbers_and_says_what_it_is_worth(drawn):
    assert {name.split(".")[0] for name in drawn} == FIGURES | {"map_scores"}
    for name in FIGURES:
        kinds = {path.suffix for path in drawn.values() if path.stem == name}
        assert kinds == {".pdf", ".svg", ".png", ".csv", ".txt"}, name
        assert "synthetic demo data" in drawn[f"{name}.txt"].read_text(encoding="utf-8"), name
        assert drawn[f"{name}.png"].read_bytes().startswith(b"\x89PNG") and len(numbers(drawn, name))
        assert drawn[f"{name}.png"].parent == paths.scale_dir("demo") / "figures"


def test_figure_6_shows_the_stored_runs_and_no_baseline(drawn):
    """The largest lambda misses none of twelve questions, each smaller one misses one more; 0.01 is the full model."""
    data = numbers(drawn, "fig6_lambda")
    assert set(data["dataset"]) == {*SETS, "avg (2 of 4 sets)"} and len(data) == 3 * len(LAMBDAS)
    for _, own in data.groupby("dataset"):
        assert own["lambda"].tolist() == list(LAMBDAS)
        assert own["ours"].tolist() == pytest.approx([100 * (12 - n) / 12 for n in (7, 6, 5, 2, 3, 2, 1, 0)])


def test_figure_6_reads_no_table_back(drawn, monkeypatch):
    """A table edited by hand, lying where the kit writes it, is not opened at all."""
    path = paths.scale_dir("demo") / "tables" / "lambda_sweep.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "table,row,dataset,split,protocol,ours\nlambda_sweep,0.1,avg,overall,paper,99.0\n", encoding="utf-8"
    )
    monkeypatch.setattr(
        tables.Table,
        "cells",
        numbers(drawn, "fig6_lambda").assign(split="overall", protocol="paper", row=lambda f: f["lambda"].astype(str)),
    )
    try:
        figure, data, _ = result_figures.lambda_curve("demo")
    finally:
        path.unlink()
    plt.close(figure)
    assert data["ours"].tolist() == numbers(drawn, "fig6_lambda")["ours"].tolist()


def test_map_scores_are_in_the_table_by_row(drawn):
    scores = pd.read_csv(drawn["map_scores.csv"], dtype={"row": str})
    own = scores[(scores["measure"] == "mass") & (scores["map"] == "transport_plan") & (scores["stage"] == "stage2")]
    value = own[own["source"] == "model"].drop_duplicates(["table", "row"]).set_index(["table", "row"])["value"]
    # the share that was put on the region, and what noise leaves there (two cells of 64)
    assert value["table2", "4"] == pytest.approx(0.1 + 0.9 * 2 / 64, abs=0.01)
    assert value["table2", "8"] == pytest.approx(0.6 + 0.4 * 2 / 64, abs=0.01)
    assert value["table2", "8"] == value["table1", "demo"]  # one run, two tables
    chance = own[own["source"] == "chance"]["value"]
    assert np.allclose(chance, 2 / 64, atol=1e-5)
    whole = scores[(scores["table"] == "table4") & (scores["row"] == "6") & (scores["dataset"] == "all")]
    sets = len(experiments.scale_settings("demo")["question_sets"])
    assert set(whole["n"]) == {sets * N} and set(whole["n_images"]) == {sets * N / 2}
    assert (whole["ci_low"] <= whole["value"] + 1e-5).all() and (whole["value"] <= whole["ci_high"] + 1e-5).all()


def test_examples_are_drawn_cell_by_cell(drawn):
    data = numbers(drawn, "fig4_local_alignment")
    assert set(data["id"]) == {"q0", "q3"} and set(data["run"]) == {"table2 row 4", "table2 row 8"}
    assert len(data) == 2 * 2 * SIDE * SIDE
    cell = data[(data["id"] == "q0") & (data["run"] == "table2 row 8") & (data["region_coverage"] == 1)]
    assert len(cell) == 2 and (cell["value"] > 0.3).all()
    assert set(numbers(drawn, "fig5_gated_attention")["map"]) == {"attention", "gate"}


def test_examples_without_regions_are_drawn_without_outline_and_not_scored(tmp_path, monkeypatch):
    """At a scale with Table 1 alone, as `small`: the full model, with nothing beside it."""
    fabricated.install(monkeypatch, tmp_path, SETS)
    monkeypatch.setattr(figure_set, "tables_of", lambda scale: ("table1",))
    monkeypatch.setattr(map_figures, "tables_of", lambda scale: ("table1",))
    row = experiments.rows("table1", "demo")[0]
    for run in row.runs[0].lineage():
        if not results.is_finished(run):
            fabricated.write_run(run, *([fabricated.wrong_at(0)] if run.stage == "finetune" else []))
        kinds = ("transport_plan", "attention", *(["gate"] if run.stage == "finetune" else []))
        maps = made_up_maps("phantom_vqa_rad", kinds, 0, 0.5)
        maps.coverage[:] = 0
        maps.outlines[:] = False
        map_files.write(run.directory / map_files.EXAMPLE_MAPS, maps)
    for name, columns in (("fig4_local_alignment", 1), ("fig5_gated_attention", 2)):
        figure, data, caption = getattr(map_figures, name.split("_", 1)[1])("demo")
        drawn = [axis for axis in figure.axes if axis.images]
        assert len(drawn) == 2 * (1 + columns) and not any(axis.collections for axis in drawn)  # no contour
        assert data["region_coverage"].isna().all() and set(data["run"]) == {"table1 row demo"}
        assert "no known region" in caption and "SCALE=demo runs no row to set beside it." in caption
    with pytest.raises(InputError, match="no run of SCALE=demo holds maps"):
        map_scores.table("demo", ("table1",))


def test_figures_are_drawn_again_when_a_table_is_made_anew_and_not_for_the_claims(tmp_path, monkeypatch):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    assert not figure_set.is_current("demo")
    for second, name in enumerate(("tables/table1.csv", "figures/figures.csv", "tables/claims.csv")):
        path = tmp_path / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x", encoding="utf-8")
        os.utime(path, (1000 + second, 1000 + second))
    assert figure_set.is_current("demo")
    os.utime(tmp_path / "demo" / "tables" / "table1.csv", (2000, 2000))
    assert not figure_set.is_current("demo")


def test_accuracy_by_type_is_that_of_the_predictions(drawn):
    """All twelve questions are of one type; the full model is made to miss two of them, the baseline nine."""
    data = numbers(drawn, "accuracy_by_type").query("dataset == 'phantom_vqa_rad'").set_index("kind")
    assert data.loc["full model", "accuracy"] == pytest.approx(100 * 10 / 12)
    assert data.loc["question only", "accuracy"] == pytest.approx(100 * 3 / 12)
    assert data.loc["full model", "n_questions"] == 12 and data.loc["full model", "n_images"] == 5


def test_calibration_by_hand(drawn):
    """A right answer has log-likelihood -5 overwritten by -1 and six others -20; a wrong one -1 against the right one's -5."""
    right, wrong = 1 / (1 + 6 * np.exp(-19)), 1 / (1 + np.exp(-4) + 5 * np.exp(-19))
    data = numbers(drawn, "calibration").query("dataset == 'phantom_vqa_rad'")
    assert data["n"].sum() == 12 and len(data) == 1  # both lie in the last bin
    confidence = (10 * right + 2 * wrong) / 12
    assert data["confidence"].iloc[0] == pytest.approx(confidence, rel=1e-5)
    assert data["ece"].iloc[0] == pytest.approx(confidence - 10 / 12, rel=1e-4)
    assert data["ece_low"].iloc[0] <= data["ece"].iloc[0] <= data["ece_high"].iloc[0]


def test_intervals_draw_pre_trainings_first(tmp_path, monkeypatch):
    """Two pre-trainings of three fine-tunings each: the first answers all rightly, the second nothing.

    One draw in four holds the second alone, so that intervals go from none to all. Drawn as six runs, one in 64 would, which
    is less than the 2.5% that an interval leaves out.
    """
    fabricated.install(monkeypatch, tmp_path, SETS[:1])
    row = tables.Selection(seeds=3, pretrain_seeds=2).rows("table1", "demo")[0]
    assert len(row.runs) == 6
    for run in row.runs:
        fabricated.write_run(run, fabricated.wrong_at(*(range(12) if run.parent.seed else ())))
    monkeypatch.setattr(result_figures, "rows_of", lambda name, scale: (row,))
    figure, data, caption = result_figures.accuracy_by_type("demo")
    plt.close(figure)
    assert data["accuracy"].tolist() == [50] and data["ci_low"].item() <= 0 and data["ci_high"].item() >= 100
    assert "crossed with 2 pre-trainings, drawn first, 3 fine-tunings of each" in caption
    figure, data, caption = result_figures.calibration("demo")
    plt.close(figure)
    assert "crossed with 2 pre-trainings" in caption and "mean of each run's own" in caption
    assert len(data) == 1 and data["n"].iloc[0] == 72 and data["accuracy"].iloc[0] == 0.5
    assert data[["ci_low", "ci_high"]].to_numpy().tolist() == [[0, 1]]
    right, wrong = 1 / (1 + 6 * np.exp(-19)), 1 / (1 + np.exp(-4) + 5 * np.exp(-19))
    # the mean of two runs' errors, not the error of the pooled answers (about 0.49 too, by the sign of the gaps)
    assert data["ece"].iloc[0] == pytest.approx(((1 - right) + wrong) / 2, rel=1e-5)
    assert data["ece_low"].iloc[0] <= 1 - right + 1e-6 and data["ece_high"].iloc[0] >= wrong - 1e-5


def test_expected_calibration_error_by_hand():
    confidence, correct = np.array([0.95, 0.85, 0.85, 0.2, 0.15]), np.array([1, 1, 0, 0, 1])
    # bins (.9, 1]: gap .05, one; (.8, .9]: |.5 - .85| = .35, two; (.1, .2]: |.5 - .175| = .325, two
    expected = (0.05 + 2 * 0.35 + 2 * 0.325) / 5
    assert result_figures.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert result_figures.calibration_bins(confidence, correct)["n"].tolist() == [2, 2, 1]


def test_run_costs_count_each_shared_run_once(drawn):
    data = numbers(drawn, "run_costs")
    assert data["run_id"].is_unique and (data["training_s"] == 30).all() and (data["evaluation_s"] == 60).all()


def test_what_is_missing_is_left_out_with_its_reason_and_its_old_picture_goes(drawn, capsys):
    row = experiments.rows("lambda_sweep", "demo", only=("0.5",))[0]
    path = row.runs[0].directory / "metrics.json"
    kept = path.read_bytes()
    path.unlink()
    try:
        names = {p.name for p in figure_set.draw_all("demo", only=("fig6_lambda", "run_costs"))}
    finally:
        path.write_bytes(kept)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and out[0].startswith("left out: fig6_lambda: lambda_sweep at scale demo lacks row 0.5 (")
    assert (
        "fig6_lambda.png" not in names
        and not drawn["fig6_lambda.png"].exists()
        and drawn["fig5_gated_attention.png"].exists()
    )
    figure_set.draw_all("demo", only=("fig6_lambda",))


def test_pictures_and_texts_that_may_not_be_shown_are_not(drawn, monkeypatch, capsys):
    monkeypatch.setattr(redistribution, "may_show", lambda name, kind: False)
    shows = ("fig4_local_alignment", "fig5_gated_attention")
    names = {p.stem for p in figure_set.draw_all("demo", only=(*shows, "hard_negatives"))}
    assert names == {"hard_negatives"}
    assert capsys.readouterr().out.count("images not shown, since its terms do not allow it") == 2
    assert "A nodule, number" not in drawn["hard_negatives.svg"].read_text(encoding="utf-8")
    assert not {"text", "negative_text"} & set(numbers(drawn, "hard_negatives"))
    monkeypatch.undo()
    figure_set.draw_all("demo", only=(*shows, "hard_negatives"))
    assert "A nodule, number" in drawn["hard_negatives.svg"].read_text(encoding="utf-8")


def test_an_unknown_figure_is_refused():
    with pytest.raises(InputError, match="figure 'fig7': unknown; choose from fig4_local_alignment"):
        figure_set.draw_all("demo", only=("fig7",))


def test_nothing_stored_is_an_error(monkeypatch, tmp_path, capsys):
    fabricated.install(monkeypatch, tmp_path, SETS)
    quicken(monkeypatch)
    with pytest.raises(InputError, match="no figure can be drawn; train its runs first"):
        figure_set.draw_all("demo")
    assert capsys.readouterr().out.count("left out: ") == len(FIGURES)


def test_equal_runs_give_equal_files(drawn):
    before = {name: path.read_bytes() for name, path in drawn.items()}
    again = figure_set.draw_all("demo", only=("fig5_gated_attention", "map_scores_stage2", "accuracy_by_type"))
    assert len(again) == 16  # with the scores of all maps
    assert [path.name for path in again if path.read_bytes() != before[path.name]] == []


def test_without_torch(drawn):
    script = (
        "import importlib.abc, sys\n"
        "class NoTorch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'): raise ImportError(f'{name} is not there')\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import pytest; from pathlib import Path; from tests import fabricated, test_figure_set\n"
        "fabricated.install(patch := pytest.MonkeyPatch(), Path(sys.argv[1])); test_figure_set.quicken(patch)\n"
        "from amif_lib.app import cli; from amif_lib.reporting import figures\n"
        "figures.METADATA = {'png': {}}\n"  # the quickest format
        "sys.exit(cli.main(['figures', '--scale', 'demo']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths.results())],
        capture_output=True,
        text=True,
        cwd=paths.ROOT,
        env={**os.environ, "MPLBACKEND": "Agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout and done.stdout.count(".png") == len(FIGURES)


def test_the_word_is_underlined_across_lines():
    """The combining low line follows each letter of the word, and no blank."""
    text = map_figures.underlined("Here the  pleural effusion lies", "pleural effusion", width=16)
    low = "\u0332"
    assert text.replace(low, "") == "Here the pleural\neffusion lies"
    assert text.count(low) == len("pleuraleffusion") and f"l{low}\ne{low}" in text and f"e{low} lies" not in text
    assert map_figures.underlined("a mass, a mass", "mass").count(low) == 4
