"""Every figure from made-up runs: what is drawn, what its numbers are, what is left out and why."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from amif_lib.app import cli
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.experiments import stored_maps
from amif_lib.experiments.stored_maps import Maps
from amif_lib.reporting import figure_set, map_figures, map_scores
from tests import fabricated

SETS = ("phantom_vqa_rad", "phantom_slake")
SIDE, N = 8, 12
WORDS = ("nodule", "mass", "infarct", "ascites")
LAMBDAS = (0, 0.01, 0.1, 1)  # the others are made on request
FIGURES = {"fig4_local_alignment", "fig5_gated_attention", "fig6_lambda", "map_scores", "training_curves"}


def made_up_maps(data_set: str, kinds: tuple[str, ...], seed: int, looks: float) -> Maps:
    """Maps that put a share `looks` on the region (two cells of 64) and the rest anywhere."""
    rng = np.random.default_rng(seed)
    coverage, values = np.zeros((N, SIDE, SIDE)), {}
    for i in range(N):
        coverage[i, i % 6 : i % 6 + 2, (3 * i) % 7] = 1
    for kind in kinds:
        noise = rng.random((N, SIDE, SIDE))
        values[kind] = looks * coverage / 2 + (1 - looks) * noise / noise.sum((1, 2), keepdims=True)
    words = np.array([WORDS[i % 4] for i in range(N)])
    texts = np.array([f"Which side is the {word} on, as far as can be seen?" for word in words])
    ids, images = np.array([f"q{i}" for i in range(N)]), np.array([f"i{i // 2}" for i in range(N)])
    pictures = rng.integers(0, 255, (2, 96, 96)).astype(np.uint8)
    outlines = np.stack([np.kron(coverage[i], np.ones((12, 12))) for i in (0, 3)]).astype(bool)
    return Maps(data_set, ids, images, words, words, texts, coverage, values, np.array([0, 3]), pictures, outlines)


def store(run, kinds: tuple[str, ...], looks: float) -> None:
    data_set = run.data.questions if run.stage == "finetune" else "phantom_teacher"
    stored_maps.write(run.directory / stored_maps.MAPS, made_up_maps(data_set, kinds, 0, looks))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("a folder with spaces"), SETS)
        patch.setattr(experiments, "tables_of", lambda scale: ("table1", "table2", "table4"))
        values = [row.row for row in experiments.rows("lambda_sweep", "demo")]
        fabricated.write_table("lambda_sweep", "demo", {row: tuple(range(n)) for n, row in enumerate(reversed(values))})
        fabricated.write_table("table1", "demo", {"demo": (0, 5), "published3064": ()})  # the sweep's 0.01 as well
        for table, looks in (("table2", {"4": 0.1, "8": 0.6}), ("table4", {"5": 0.2, "6": 0.5})):
            rows = experiments.rows(table, "demo", only=tuple(looks))
            for row, run in ((each, run) for each in rows for tip in each.runs for run in tip.trainings()):
                if not results.is_finished(run):
                    fabricated.write_run(run, fabricated.wrong_at(0) if run.stage == "finetune" else None)
                if run.stage == "stage2" and table == "table2":  # Table 4 shares that of row 8
                    store(run, ("transport_plan", "attention"), looks[row.row])
                elif run.stage == "finetune":
                    gate = ("gate",) if run.knowledge.gate else ()
                    store(run, ("transport_plan", "attention", *gate), looks[row.row])
        yield {path.name: path for path in figure_set.draw_all("demo")}


def numbers(drawn, name) -> pd.DataFrame:
    return pd.read_csv(drawn[f"{name}.csv"], dtype={"row": str})


def test_every_figure_comes_with_its_numbers_and_says_what_it_is_worth(drawn):
    assert {name.split(".")[0] for name in drawn} == FIGURES
    for name in FIGURES:
        kinds = {path.suffix for path in drawn.values() if path.stem == name}
        assert kinds == {".pdf", ".svg", ".png", ".csv", ".txt"}, name
        assert "synthetic demo data" in drawn[f"{name}.txt"].read_text(encoding="utf-8"), name
        assert drawn[f"{name}.png"].read_bytes().startswith(b"\x89PNG") and len(numbers(drawn, name))
        assert b"<text" in drawn[f"{name}.svg"].read_bytes()  # text stays text
    index = pd.read_csv(paths.scale_dir("demo") / "figures" / figure_set.INDEX)
    assert set(index["figure"]) == FIGURES and index["caption"].str.len().gt(40).all()


def test_figure_6_shows_the_stored_runs_and_no_baseline(drawn):
    """The largest lambda misses none of twelve questions, each smaller one misses one more; 0.01 is the full model."""
    data = numbers(drawn, "fig6_lambda")
    assert set(data["dataset"]) == {*SETS, "avg (2 sets)"} and len(data) == 3 * len(LAMBDAS)
    for _, own in data.groupby("dataset"):
        assert own["lambda"].tolist() == list(LAMBDAS)
        assert own["ours"].tolist() == pytest.approx([100 * (12 - n) / 12 for n in (3, 2, 1, 0)], rel=1e-5)


def test_map_scores_by_row(drawn):
    """The share that was put on the region, and what noise leaves there; runs of two rows are listed once."""
    scores = numbers(drawn, "map_scores").set_index(["table", "row", "stage", "map"])
    assert scores.index.is_unique and set(scores["n_scores"]) == {len(scores)}
    plan = scores.xs(("stage2", "transport_plan"), level=("stage", "map"))
    assert list(plan.index) == [("table2", "4"), ("table2", "8")]  # Table 4 shares that of row 8
    assert plan["inside"].tolist() == pytest.approx([0.1 + 0.9 * 2 / 64, 0.6 + 0.4 * 2 / 64], abs=0.01)
    assert np.allclose(scores["area"], 2 / 64, atol=1e-5)
    whole = scores.sort_index().xs(("table2", "8", "finetune"))  # Table 4 shares it as its row 6
    assert set(whole["n"]) == {len(SETS) * N} and set(whole["n_images"]) == {len(SETS) * N / 2}
    assert (scores["low"] < scores["lead"]).all() and (scores["lead"] < scores["high"]).all()
    assert (plan["low"] > 0).tolist() == [True, True]


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
    monkeypatch.setattr(map_figures, "tables_of", lambda scale: ("table1",))
    for run in experiments.rows("table1", "demo")[0].runs[0].trainings():
        fabricated.write_run(run, fabricated.wrong_at(0) if run.stage == "finetune" else None)
        maps = made_up_maps("phantom_vqa_rad", ("transport_plan", "attention", "gate"), 0, 0.5)
        maps.coverage[:] = 0
        maps.outlines[:] = False
        stored_maps.write(run.directory / stored_maps.MAPS, maps)
    for draw, columns in ((map_figures.local_alignment, 1), (map_figures.gated_attention, 2)):
        figure, data, caption = draw("demo")
        shown = [axis for axis in figure.axes if axis.images]
        assert len(shown) == 2 * (1 + columns) and not any(axis.collections for axis in shown)  # no contour
        assert set(data["region_coverage"]) == {0} and set(data["run"]) == {"table1 row demo"}
        assert "no known region" in caption
        plt.close(figure)
    with pytest.raises(InputError, match="no run of SCALE=demo holds maps"):
        map_scores.table("demo")


def test_what_cannot_be_drawn_is_left_out_with_its_reason_and_its_old_picture_goes(drawn, monkeypatch, capsys):
    before = {name: path.read_bytes() for name, path in drawn.items()}
    path = experiments.rows("lambda_sweep", "demo", only=("0.1",))[0].runs[0].directory / "metrics.json"
    kept = path.read_bytes()
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "may_show", lambda name, kind: False)
        names = {path.stem for path in figure_set.draw_all("demo")}
    path.write_bytes(kept)
    said = capsys.readouterr().out
    assert "left out: fig6_lambda: lambda_sweep at scale demo lacks row 0.1" in said
    assert said.count("images not shown, since its terms do not allow it") == 2
    assert names == {"map_scores", "training_curves"}
    assert not any(drawn[f"{name}.png"].exists() for name in FIGURES - names)
    again = figure_set.draw_all("demo")
    assert {path.name: path.read_bytes() for path in again} == before  # equal runs give equal files
    assert numbers(drawn, "training_curves")["loss"].tolist()[:3] == pytest.approx([2.0, 1.0, 2 / 3], rel=1e-5)


def test_without_runs_nothing_is_drawn_and_each_figure_says_why(monkeypatch, tmp_path, capsys):
    fabricated.install(monkeypatch, tmp_path, SETS)
    monkeypatch.setenv("ROWS", "6")
    assert cli.main(["figures"]) == 0 and (said := capsys.readouterr().out).count("left out: ") == len(FIGURES)
    assert "ROWS: not read here" in said
    assert pd.read_csv(tmp_path / "demo" / "figures" / figure_set.INDEX).empty


def test_notebook_20_shows_the_stored_maps(drawn, monkeypatch):
    monkeypatch.setenv("FROM", "")
    names: dict = {}
    notebook = json.loads((paths.NOTEBOOKS / "20_attention_and_transport_maps.ipynb").read_text(encoding="utf-8"))
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        exec("".join(cell["source"]).replace('source = ""', 'source = "runs"'), names)
    assert len(names["scores"]) and len(names["maps"]) == N and "map_scores" in {p.stem for p in names["written"]}
