"""Stored runs, figures and the report page, from made-up runs."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

matplotlib.use("Agg")

from amif_lib import load_run
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored as results
from amif_lib.reporting import figure_set, figures, report, report_facts, table_rows, table_tests, tables

WRONG = {"1": (0, 1, 3, 5, 6, 8), "3": (0, 1, 5, 8), "5": (0, 5), "6": (5,)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("a folder with spaces")
        fabricated.install(patch, folder)
        write_table("table1", "demo", {"demo": WRONG["6"], "published3064": (1,)})
        write_table("table4", "demo", WRONG)
        plan("table1", "table4")
        yield folder


def plan(*names: str) -> None:
    """A plan of these tables, as `make reproduce` leaves it behind."""
    jobs = [{"rule": "data", "name": "demo"}, *({"rule": "table", "name": name} for name in names)]
    path = paths.plan("demo")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"selection": {}, "jobs": jobs}), encoding="utf-8")


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):  # these have no end
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attributes[attribute] for name, attributes in self.tags if name == tag and attribute in attributes]


@pytest.fixture(scope="module")
def page(demo):
    path = report.write("demo")
    assert path == paths.scale_dir("demo") / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_page_says_its_scale_first(page):
    assert page.text.index("synthetic demo data; not comparable with the paper") < page.text.index("Table 4")
    assert "not by the paper's authors" in page.text and "not for clinical use" in page.text


def test_page_needs_nothing_else(page):
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe"}
    sources = page.all("img", "src")
    assert len(sources) >= 3 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert all(base64.b64decode(s.split(",", 1)[1]).startswith(b"\x89PNG") for s in sources)
    assert all(page.all("img", "alt"))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_every_link_resolves(page):
    links = page.all("a", "href")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    outside = [link for link in links if not link.startswith("#")]
    assert all((paths.scale_dir("demo") / link).exists() for link in outside)
    runs = {Path(link).name for link in outside if link.startswith("../runs/")}
    assert len(outside) > len(runs)
    assert runs == {run.name for run in (paths.results() / "runs").iterdir()}  # pre-training runs too


def test_page_holds_the_numbers(page):
    for text in (
        "91.67 [",
        "80.49",
        "question only (trained on blank images)",
        "nearest question on the same image",
        "strict@1",
        "mean q ii",
        "0.31",
        "the plan says something",
        "model.width",
        "768",
        "code1",
        "0:01:30",
        "not tested at this scale",
    ):
        assert text in page.text, text
    assert "MIXED CODE" not in page.text


def without_figures(monkeypatch) -> None:
    monkeypatch.setattr(figure_set, "is_current", lambda scale: True)
    monkeypatch.setattr(report, "_draw_accuracy", lambda *arguments: None)


def test_tables_written_by_the_report_keep_their_time_stamp_when_nothing_changed(monkeypatch, demo, page):
    without_figures(monkeypatch)
    path = paths.scale_dir("demo") / "tables" / "table4.csv"
    before = path.stat().st_mtime_ns
    report.write("demo")
    assert path.stat().st_mtime_ns == before
    path.write_text("edited by hand", encoding="utf-8")
    report.write("demo")
    assert pd.read_csv(path)["ours"].notna().all()


def test_figures_are_drawn_again_where_the_tables_show_other_runs(monkeypatch, demo, page):
    """Whether they are current is asked once more when the tables are made: they say what the runs are by then."""
    started = []
    monkeypatch.setattr(report, "_draw_accuracy", lambda *arguments: None)
    monkeypatch.setattr(figure_set, "start", lambda scale: started.append(scale) or fabricated.Done())
    monkeypatch.setattr(figure_set, "finish", lambda scale, process: None)
    asked = iter([True, False])
    monkeypatch.setattr(figure_set, "is_current", lambda scale: next(asked))
    report.write("demo")
    assert started == ["demo"]


def test_figures_that_another_process_cannot_draw_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("AMIF_RESULTS", str(tmp_path))
    with pytest.raises(InputError, match="the figures could not be drawn: no run of it"):
        figure_set.finish("demo", fabricated.Done(2, "left out\nerror: no run of it\n"))
    with pytest.raises(InputError, match="not written by python -m amif_lib figures --scale demo"):
        figure_set.finish("demo", fabricated.Done())
    process = fabricated.START("demo")  # a real one: nothing is stored there, and that is no error of the page
    figure_set.finish("demo", process)
    assert (tmp_path / "demo" / "figures" / figure_set.INDEX).is_file()


def test_page_escapes_what_it_is_given(monkeypatch, demo):
    rows = table_rows.Selection.rows

    def with_markup(self, name, scale):
        return [row.model_copy(update={"label": "<script>alert(1)</script>"}) for row in rows(self, name, scale)]

    monkeypatch.setattr(table_rows.Selection, "rows", with_markup)
    without_figures(monkeypatch)
    text = report.write("demo").read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_planned_tables(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    assert report.planned_tables("demo") == list(experiments.tables_of("demo"))
    plan("table5")
    assert report.planned_tables("demo") == ["table5"]


def test_headline_comes_before_the_tables_and_every_part_is_in_the_contents(page):
    parts = ["headline", "overview", "table4", "figures", "claims", "protocol", "settings", "runs", "cost", "checklist"]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "h2"]
    assert [name for name in ids if name in parts] == parts
    assert {f"#{name}" for name in ids} == {link for link in page.all("a", "href") if link.startswith("#")}


def test_checklist_says_what_the_runs_say(demo, page):
    runs = [load_run(run) for run in table_rows.required_runs("table4", "demo")]
    found = {name: (answer, words) for name, answer, words in report_facts.checklist("demo", [], runs)}
    assert found["Claims"][0] == "no" and "no claim of the paper is tested" in found["Claims"][1]
    assert found["Seeds and error bars"][0] == "partly" and "One fine-tuning seed" in found["Seeds and error bars"][1]
    assert str(timedelta(seconds=90 * len(runs))) in found["Compute"][1]  # 90 s each
    assert found["Splits"][0] == "partly" and "phantom_vqa_rad's test questions" in found["Splits"][1]
    assert "this scale's own" in found["Hyper-parameters"][1] and table_tests.HOLM in found["Seeds and error bars"][1]
    assert "drawn by the kit" in found["New assets"][1] and "MIT" in found["Licences"][1]
    unknown = runs[0]
    unknown.provenance["wall_time_s"] = None
    again = {name: answer for name, answer, _ in report_facts.checklist("paper", [], runs)}
    assert again["Compute"] == "partly" and again["Claims"] == again["Splits"] == "yes"
    assert "by training loss" in _answers("small", runs)["Splits"][1]
    assert "follow the paper" in _answers("paper", runs)["Hyper-parameters"][1]
    assert all(name in page.text for name in found)


def _answers(scale: str, runs: list) -> dict[str, tuple[str, str]]:
    return {name: (answer, words) for name, answer, words in report_facts.checklist(scale, [], runs)}


def test_checklist_tells_fine_tunings_from_pretrainings(monkeypatch):
    said = {}
    for counts in ((1, 1), (2, 1), (1, 3), (2, 3)):
        monkeypatch.setattr(report_facts, "seed_counts", lambda lines, counts=counts: counts)
        table = SimpleNamespace(lines=[])
        found = {name: (answer, words) for name, answer, words in report_facts.checklist("demo", [table], [])}
        said[counts] = found["Seeds and error bars"]
    assert [answer for answer, _ in said.values()] == ["partly", "yes", "yes", "yes"]
    assert "up to 2 seeds; the intervals" in said[2, 1][1] and "Pre-training was done once" in said[2, 1][1]
    assert "One fine-tuning seed per pre-training. Pre-training was repeated with up to 3 seeds" in said[1, 3][1]
    assert "repeated with up to 2 seeds" in said[2, 3][1] and "up to 3 seeds" in said[2, 3][1]


def test_cost_holds_each_teacher_once():
    def run(stage: str, teacher: dict | None) -> SimpleNamespace:
        metrics = {} if teacher is None else {"teacher": teacher}
        return SimpleNamespace(spec=SimpleNamespace(stage=stage), metrics=metrics, provenance={"wall_time_s": 60.0})

    one, two = {"id": "a", "wall_time_s": 90.0}, {"id": "b", "wall_time_s": 30.5}
    runs = [run("stage1", one), run("stage2", one), run("stage1", two), run("finetune", None)]
    got = report.cost(runs).set_index("stage")
    assert got.loc["teacher"].tolist() == [2, "0:02:00", "0:01:30"] and got.loc["stage 1"].tolist()[0] == 2
    two["wall_time_s"] = None
    assert report.cost(runs).set_index("stage").loc["teacher"].tolist() == [2, "unknown", "0:01:30"]
    assert "teacher" not in set(report.cost([run("finetune", None)])["stage"])


def test_pictures_are_made_small_and_keep_their_looks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 2000, 3), dtype=np.uint8)
    pixels[:, :1900] = (1, 115, 178)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(200, 200))
    data, width, height = report.small_png(tmp_path / "a.png")
    got = Image.open(io.BytesIO(data))
    assert got.width == report.PIXELS and len(data) < (tmp_path / "a.png").stat().st_size
    assert (width, height) == (1100, 28)  # 10 inches
    assert got.convert("RGB").getpixel((10, 10)) == pytest.approx((1, 115, 178), abs=4)


def test_report_with_a_missing_run_is_refused(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):
        report.write("demo")
    assert not (paths.scale_dir("demo") / "report.html").exists()


def test_settings_that_differ():
    got = report.settings_that_differ("small").set_index(["setting", "stage"])
    assert got.loc[("model.image_size", "all stages")].tolist()[:2] == ["288", "128"]
    assert got.loc[("train.epochs", "fine-tuning"), "SCALE=paper"] == "60"
    got = report.settings_that_differ("small")
    assert list(got.columns[2:]) == ["SCALE=paper", "AMiF, init=minilm", "AMiF, init=random"]
    assert report.settings_that_differ("paper").empty


def test_cost_is_the_sum_of_wall_times(demo):
    runs = [load_run(run) for run in table_rows.required_runs("table4", "demo")]
    got = report.cost(runs).set_index("stage")
    assert got.loc["fine-tuning"].tolist() == [
        len(runs),
        f"0:{len(runs) * 3 // 2:02d}:{len(runs) % 2 * 30:02d}",
        "0:01:30",
    ]


# --- figures ---


def test_figure_files_are_equal_for_equal_input(demo, tmp_path):
    figures.use_style()
    cells = tables.collect("table4", "demo").cells
    first, second = (
        [
            p.read_bytes()
            for p in figures.save(
                figures.accuracy_plot(cells), tmp_path / name / "accuracy", figures.accuracy_data(cells), "A caption."
            )
        ]
        for name in ("one", "two")
    )
    assert first == second and len(first) == 5
    assert Image.open(tmp_path / "one" / "accuracy.png").width > 1000
    assert b"<text" in (tmp_path / "one" / "accuracy.svg").read_bytes()  # text stays text
    assert (tmp_path / "one" / "accuracy.txt").read_text() == "A caption.\n"


def test_accuracy_data(demo):
    cells = tables.collect("table4", "demo").cells
    got = figures.accuracy_data(cells)
    assert set(got["kind"]) == {"ours", "baseline"}  # no paper beside synthetic data
    assert set(got.loc[got["kind"] == "baseline", "label"]) == set(
        cells.loc[cells["row"].map(table_rows.is_baseline), "label"]
    )
    shown = figures.accuracy_data(cells, with_paper=True)
    assert 80.49 in set(shown.loc[shown["kind"] == "paper", "accuracy"])
    with pytest.raises(InputError, match="phantom_vqa_rad"):
        figures.accuracy_plot(cells, "slake")


def test_training_data(demo):
    runs = [load_run(run) for run in table_rows.Selection().rows("table4", "demo")[3].runs[0].lineage()]
    got = figures.training_data(runs)
    assert set(got["stage"]) == {"stage1", "stage2", "finetune"} and len(got) == 30
    assert got["loss"].tolist()[:3] == [2.0, 1.0, 2 / 3]
    assert len(figures.training_curves(runs).axes) == 3
    with pytest.raises(InputError):
        figures.training_curves([])


# --- stored runs ---


def test_load_run(demo):
    spec = table_rows.Selection().rows("table4", "demo")[3].runs[0]
    for given in (spec, spec.run_id, spec.directory, str(spec.directory)):
        assert load_run(given).run_id == spec.run_id
    run = load_run(spec)
    assert run.spec == spec and run.metrics["train_time_s"] == 30 and len(run.history) == 10
    assert len(run.predictions) == 12 and len(run.candidates) == 7 and len(run.blank_test[0]) == 12
    assert len(run.blank_test[0]) == 12
    with pytest.raises(InputError, match="not a run folder"):
        load_run("0123456789ab")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.json", "{", r"metrics\.json: not valid JSON, line 1"),
        ("metrics.json", "[]", "expected a JSON object"),
        ("metrics.json", None, r"metrics\.json: missing"),
        ("metrics.jsonl", '{"step": 0}\n{"st\n', "line 2 is not JSON"),
    ],
)
def test_damaged_run(monkeypatch, tmp_path, name, text, message):
    fabricated.install(monkeypatch, tmp_path)
    spec = table_rows.Selection().rows("table4", "demo")[0].runs[0]
    path = write_run(spec, wrong_at()) / name
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_run(spec).metrics if name == "metrics.json" else load_run(spec).history


def test_unknown_key_in_a_stored_spec(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    spec = table_rows.Selection().rows("table4", "demo")[0].runs[0]
    path = write_run(spec, wrong_at()) / "spec.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sedd": 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"spec\.json: sedd: unknown key"):
        _ = load_run(spec.directory).spec


def test_provenance_names_no_machine():
    text = json.dumps(results.provenance(processes=2, seconds=12.34))
    assert json.loads(text)["wall_time_s"] == 12.3
    import getpass
    import platform

    assert str(paths.ROOT) not in text and platform.node() not in text
    assert getpass.getuser() not in json.loads(text)["hardware"].values()


def test_nothing_of_this_imports_torch():
    code = (
        "import sys; from amif_lib.experiments import stored as results; from amif_lib.reporting import figures, layout, report, tables; from amif_lib.scoring import baselines, protocols; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT, check=False)
    assert done.returncode == 0, done.stderr
