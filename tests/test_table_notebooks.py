"""The table notebooks on made-up runs, cell by cell, and the figure that they draw."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.data import manifests
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import contrasts, show, table_rows, tables
from amif_lib.reporting.table_rows import Selection
from tests import fabricated
from tests.fabricated import write_table

SETS = ("phantom_vqa_rad", "phantom_slake")
NOTEBOOKS = {f"1{n}_table{n}": f"table{n}" for n in range(1, 6)} | {"16_lambda_sweep": "lambda_sweep"}
WRONG = {"1": (0, 1, 3), "2": (0, 1), "3": (0, 5), "6": (5,), "8": (5,), "demo": (5,)}
WRONG |= {"0": (0, 1), "0.01": (5,), "0.05": (5, 7)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("results of notebooks"), SETS)
        for name in NOTEBOOKS.values():
            write_table(name, "demo", WRONG)
        yield


def execute(notebook: str, monkeypatch) -> tuple[dict, str]:
    """Run a notebook's code cells here; returns its names and what it displays."""
    names, shown = {}, []
    monkeypatch.setenv("FROM", "")  # which a page sets
    monkeypatch.setattr("IPython.display.display", lambda *things: shown.extend(things))
    for cell in json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook, "exec"), names)
    texts = [thing.to_html() if hasattr(thing, "to_html") else getattr(thing, "data", "") for thing in shown]
    return names, "\n".join(map(str, texts))


@pytest.mark.parametrize(("notebook", "table"), NOTEBOOKS.items())
def test_table_notebook(runs, capsys, monkeypatch, notebook, table):
    names, words = execute(notebook, monkeypatch)
    said = capsys.readouterr().out
    assert "synthetic demo data; not comparable with the paper" in said and names["spec"] == f"demo/{table}"
    written = {path.name for path in names["written"]}
    endings = (".csv", "_tests.csv", "_seeds.csv", ".md", ".tex")
    assert {f"{table}{ending}" for ending in endings} | {f"accuracy_{table}.png"} <= written
    assert "Runs: your own" in said and not paths.from_reference()
    assert "91.7 [" in words and "most frequent training answer" in words and "Teaching run" in words
    page = (paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8")
    if table in ("table2", "table3", "table4"):  # each row is explained in prose
        rows = {line.row for line in names["table"].lines if line.entry}
        assert [row for row in rows if f"| {row} |" not in page] == []


def test_notebook_of_methods(monkeypatch, tmp_path, capsys):
    """The rows of the methods that the scale has, judged by replicates; what is printed elsewhere stands apart."""
    fabricated.install(monkeypatch, tmp_path)
    wrong = {"no_pretraining": (0, 1, 3), "clip": (1, 3), "arl": (3,), "full": (5,)}
    write_table("methods", "demo", wrong, Selection(pretrain_seeds=1))
    fabricated.plan("methods", methods={"pretrain_seeds": 1})
    assert table_rows.planned_tables("demo")[-1] == "methods"
    names, words = execute("17_methods", monkeypatch)
    assert "Runs: your own" in capsys.readouterr().out and "77.68 by answer_type" in words
    assert "Teaching run: every configuration was trained once" in words
    assert {path.name for path in names["written"]} >= {"methods.csv", "methods_seeds.csv", "methods.md"}
    found = names["found"].set_index(["contrast", "outcome"])
    assert found.loc[("AMiF against no pre-training", "closed"), "difference"] == pytest.approx(200 / 7)  # two of seven
    assert found.loc[("ARL against no pre-training, no gate", "open"), "difference"] == pytest.approx(20)  # one of five
    synthetic = names["table"].cells["ours"].map("{:.2f}".format)
    assert not set(synthetic) & set(names["wide"].to_numpy().ravel()) and names["table"].published.empty
    # with five replicates of each row, although the contrasts have trained eight of two of them
    write_table("methods", "demo", wrong, Selection(pretrain_seeds=5))
    write_table("contrasts", "demo", {"full": (5,)}, Selection(only=("full", "no_pretraining")))
    found = contrasts.contrasts(tables.collect("methods", "demo", Selection()))
    assert set(found["replicates"]) == {5} and "over 5 replicates" in contrasts.sentence(found)


def test_what_arl_and_mlip_print_is_that_of_the_papers_and_doubtful_numbers_are_marked():
    arl, mlip = (pd.read_csv(paths.published() / f"{name}.csv") for name in ("arl_vqa", "mlip_tables"))
    same = stored.published("table1").query("row == 'ARL'")
    columns = ["dataset", "split", "value"]
    assert arl[columns].to_numpy().tolist() == same[columns].to_numpy().tolist()
    assert arl["mark"].notna().tolist() == [False, False, True, False, False, True, True]
    guess = mlip["metric"].map({"AUROC": 50, "accuracy": 100 / 3})
    below = mlip[mlip["value"] < guess]
    assert below["mark"].str.startswith("below ").all() and below["labels"].tolist().count("zero-shot") == 24
    assert mlip.loc[mlip["labels"] == "zero-shot", "mark"].str.contains("no target").all()
    one = mlip[mlip["row"].str.fullmatch("mlip|mlip_vit_b_16")].set_index(["source", "dataset"])
    for key, values in {  # read again from the paper
        ("Table 1", "RSNA"): [12.3, 17.2, 19.1, 25.8],
        ("Table 2", "SIIM"): [40.2, 51.6, 60.8, 68.1],
        ("Table 3", "COVIDx"): [34.8, 75.3, 86.3, 92.5],
    }.items():
        assert one.loc[[key], "value"].tolist() == values
    probed = mlip.query("source == 'Table 3' and metric == 'AUROC' and labels != 'zero-shot'").set_index("row")["value"]
    gains = probed["mlip_vit_b_16"].to_numpy() - probed["mgca_vit_b_16"].to_numpy()
    assert gains.round(1).min() == 0.0 and gains.round(1).max() == 0.3  # notebook 18 says so


def test_numbers_in_the_prose_of_methods_are_those_of_settings_and_manifests():
    for scale in ("demo", "small", "base", "paper"):
        settings = experiments.scale_settings(scale)
        both = settings["stage1"]["epochs"] + settings["stage2"]["epochs"]
        assert {method["pretrain"]["epochs"] for method in settings["methods"].values()} == {both}
    sets = [*experiments.scale_settings("demo")["data"]["pretrain"], "phantom_transfer"]
    *studies, labelled = [sum(split.studies for split in manifests.load(name).splits) for name in sets]
    assert round(sum(studies), -2) == 2500 and labelled == 2000


def test_whose_runs_are_read(runs, monkeypatch, tmp_path):
    """The user's own where there are all, the committed ones elsewhere, files apart; what was asked for before all."""
    monkeypatch.setenv("FROM", "reference")  # of an earlier page in the same kernel
    assert "your own" in show.read_from("", "demo", "table2") and not paths.from_reference()
    assert "your own" in show.read_from("", "base", "table1")  # nothing of it is committed
    assert "committed reference" in show.read_from("reference", "demo", "table2")
    assert paths.scale_dir("demo") == paths.results() / "from_reference" / "demo"
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    assert "results/reference/demo" in show.read_from("", "demo", "table2") and paths.from_reference()
    assert "your own" in show.read_from("runs", "demo", "table2")
    with pytest.raises(InputError, match=r"table2 at scale demo lacks .*; run `make reproduce"):
        tables.collect("table2", "demo")
    with pytest.raises(InputError, match="source = 'mine': unknown"):
        show.read_from("mine", "demo")


def test_figure_has_a_panel_per_set_and_the_data_that_it_shows(runs):
    whole = tables.collect("table2", "demo")
    figure, data, caption = show.draw(whole)
    titles = [axis.get_title(loc="left").splitlines()[0] for axis in figure.axes]
    assert titles == ["avg", "phantom VQA-RAD", "phantom SLAKE"]
    assert set(data["kind"]) == {"ours", "baseline"}  # no printed number on one axis with synthetic data
    cells = whole.cells[(whole.cells["protocol"] == "paper") & (whole.cells["split"] == "overall")]
    assert list(data["accuracy"]) == list(cells["ours"]) and len(data) == len(cells)
    drawn = [point for axis in figure.axes for points in axis.collections for point in points.get_offsets()[:, 0]]
    assert set(cells["ours"].round(6)) <= {round(float(x), 6) for x in drawn}
    assert "not comparable" in caption and "the spread between trainings is not in them" in caption


def test_figure_on_real_data_has_the_papers_number_beside_ours(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "paper", {"hub": (2,), "published3064": ()}, Selection(("vqa_rad",)))
    whole = tables.collect("table1", "paper", Selection(("vqa_rad",)))
    figure, data, _ = show.draw(whole)
    paper = data[data["kind"] == "paper"].set_index("row")["accuracy"]
    assert set(paper) == {80.49} and "hub" in paper.index
    assert [axis.get_title(loc="left").splitlines()[0] for axis in figure.axes] == ["VQA-RAD"]
