"""The table notebooks on made-up runs, cell by cell, and the figure that they draw."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

matplotlib.use("Agg")

from amif_lib.core import paths
from amif_lib.reporting import table_figures, tables
from tests import fabricated
from tests.fabricated import write_table

SETS = ("phantom_vqa_rad", "phantom_slake")
NOTEBOOKS = {
    "11_table1": "table1",
    "12_table2": "table2",
    "13_table3": "table3",
    "14_table4": "table4",
    "15_table5": "table5",
    "16_lambda_sweep": "lambda_sweep",
}
WRONG = {
    "1": (0, 1, 3),
    "2": (0, 1),
    "3": (0, 5),
    "6": (5,),
    "8": (5,),
    "demo": (5,),
    "0": (0, 1),
    "0.01": (5,),
    "0.05": (5, 7),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("results of notebooks"), SETS)
        for name in NOTEBOOKS.values():
            write_table(name, "demo", WRONG)
        yield


def execute(notebook: str) -> tuple[dict, list[str]]:
    """Run a notebook's code cells here; returns its names and what its cells show."""
    cells = json.loads((paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    names, shown = {}, []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]))
        value = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, notebook, "exec"), names)
        if value is not None:
            found = eval(compile(ast.Expression(value.value), notebook, "eval"), names)
            shown.append(found.to_string() if isinstance(found, pd.DataFrame) else str(getattr(found, "data", found)))
    return names, shown


@pytest.mark.parametrize(("notebook", "table"), NOTEBOOKS.items())
def test_table_notebook(runs, capsys, notebook, table):
    names, shown = execute(notebook)
    said, words = capsys.readouterr().out, "\n".join(shown)
    assert "synthetic demo data; not comparable with the paper" in said and names["spec"] == f"demo/{table}"
    folder = paths.scale_dir("demo")
    assert all((folder / "tables" / f"{table}{ending}").is_file() for ending in tables.FILES)
    assert f"tables/{table}.csv" in said.replace("\\", "/") and (folder / "figures" / f"accuracy_{table}.png").is_file()
    assert "91.7 [" in words and "most frequent training answer" in words and "not tested at this scale" in words
    page = (paths.NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8")
    if table in ("table2", "table3", "table4"):  # each row is explained in prose
        assert [row.row for row in names["table"].rows if f"| {row.row} |" not in page] == []


def test_figure_has_a_panel_per_set_and_the_data_that_it_shows(runs):
    whole = tables.Table("table2", "demo")
    figure, data = table_figures.overall(whole), table_figures.overall_data(whole)
    titles = [axis.get_title(loc="left").splitlines()[0] for axis in figure.axes]
    assert titles == ["avg", "phantom VQA-RAD", "phantom SLAKE"]
    assert set(data["kind"]) == {"ours", "baseline"}  # no printed number on one axis with synthetic data
    cells = whole.cells[(whole.cells["protocol"] == "paper") & (whole.cells["split"] == "overall")]
    assert list(data["accuracy"]) == list(cells["ours"]) and len(data) == len(cells)
    drawn = [point for axis in figure.axes for points in axis.collections for point in points.get_offsets()[:, 0]]
    assert set(cells["ours"].round(6)) <= {round(float(x), 6) for x in drawn}
    assert "phantom sets" in table_figures.caption(whole) and "one training per cell" in table_figures.caption(whole)


def test_figure_of_table1_on_real_data_has_the_other_methods(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    write_table("table1", "paper", {"hub": (2,), "published3064": ()}, tables.Selection(("vqa_rad",)))
    whole = tables.Table("table1", "paper", tables.Selection(("vqa_rad",)))
    data = table_figures.overall_data(whole)
    paper = data[data["kind"] == "paper"].set_index("row")["accuracy"]
    assert len(paper) == 15 and paper["LaPA"] == 79.38 and paper["hub"] == 80.49
    assert [axis.get_title(loc="left").splitlines()[0] for axis in table_figures.overall(whole).axes] == ["VQA-RAD"]


def test_tables_claims_and_their_figure_need_no_torch():
    code = "import sys; from amif_lib.reporting import claims, layout, layout_latex, table_figures, tables; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
