"""The report page and the stored runs behind it, from made-up runs."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pandas as pd
import pytest

from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import report
from amif_lib.reporting.table_rows import Selection, planned_tables, required_runs
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("a folder with spaces"))
        write_table("table1", "demo", {"demo": (5,), "published3064": (1,)})
        write_table("table4", "demo", {"1": (0, 1, 3, 5, 6, 8), "3": (0, 1, 5, 8), "5": (0, 5), "6": (5,)})
        plan("table1", "table4")
        yield


def plan(*names: str) -> None:
    """A plan of these tables, as `make reproduce` leaves it behind."""
    path = paths.plan("demo")
    path.parent.mkdir(parents=True, exist_ok=True)
    jobs = [{"rule": "data", "name": "demo"}, *({"rule": "table", "name": name} for name in names)]
    path.write_text(json.dumps({"selection": {}, "jobs": jobs}), encoding="utf-8")


class Page(HTMLParser):
    """Every tag with its attributes, and the text; each tag must be closed."""

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
    return Page(report.write("demo").read_text(encoding="utf-8"))


def test_page_needs_nothing_else_and_every_link_resolves(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    pictures = page.all("img", "src")
    assert len(pictures) >= 3 and all(page.all("img", "alt"))
    assert all(base64.b64decode(p.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG") for p in pictures)
    links, ids = page.all("a", "href"), {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    outside = [link for link in links if not link.startswith("#")]
    assert all((paths.scale_dir("demo") / link).exists() for link in outside)
    runs = {Path(link).name for link in outside if link.startswith("../runs/")}
    assert runs == {run.name for run in (paths.results() / "runs").iterdir()}  # pre-training runs too


def test_page_holds_scale_numbers_and_commit(page):
    assert page.text.index("synthetic demo data; not comparable with the paper") < page.text.index("Table 4")
    commit = stored.load_run(required_runs("table4", "demo")[0]).commit
    assert f"Runs of commit {commit[:12]}" in page.text and "digest" not in page.text
    said = (
        "91.7 [",
        "question only (trained on blank images)",
        "nearest question on the same image",
        "strict@1",
    )
    said += (
        "mean q ii",
        "0.31",
        "the plan says something",
        "model.width",
        "768",
        "0:01:30",
        "not tested at this scale",
    )
    said += ("not by the paper's authors", "not for clinical use")
    assert [text for text in said if text not in page.text] == []


def test_parts_are_in_order_and_in_the_contents(page):
    parts = ["headline", "table4", "figures", "claims", "protocol", "teacher", "settings", "runs", "cost", "conditions"]
    assert [attributes["id"] for tag, attributes in page.tags if tag == "h2"] == parts
    assert {f"#{name}" for name in parts} == {link for link in page.all("a", "href") if link.startswith("#")}


def test_tables_as_figures_are_folded_and_pictures_are_as_large_as_they_were_drawn(demo, page):
    shown = report.pictures(paths.scale_dir("demo") / "figures")
    assert [picture["repeats"] for picture in shown].count(True) == 2 < len(shown)
    assert all(400 < picture["width"] < 1700 and set(picture["links"]) for picture in shown)  # CSS pixels


def test_a_second_report_changes_no_table_unless_it_was_edited_and_escapes_what_it_is_given(monkeypatch, demo, page):
    monkeypatch.setattr(report.figure_set, "draw_all", lambda *_, **__: [])
    monkeypatch.setattr(report.table_figures, "save", lambda table: [])
    path = paths.scale_dir("demo") / "tables" / "table4.csv"
    before = path.stat().st_mtime_ns
    report.write("demo")
    assert path.stat().st_mtime_ns == before
    path.write_text("edited by hand", encoding="utf-8")
    rows = Selection.rows

    def with_markup(self, name, scale):
        return [row.model_copy(update={"label": "<script>alert(1)</script>"}) for row in rows(self, name, scale)]

    monkeypatch.setattr(Selection, "rows", with_markup)
    text = report.write("demo").read_text(encoding="utf-8")
    assert pd.read_csv(path)["ours"].notna().all()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_cost_holds_each_teacher_once_and_does_not_guess():
    def run(stage: str, teacher: dict | None) -> SimpleNamespace:
        metrics = {} if teacher is None else {"teacher": teacher}
        return SimpleNamespace(spec=SimpleNamespace(stage=stage), metrics=metrics, provenance={"wall_time_s": 60.0})

    one, two = {"id": "a", "wall_time_s": 90.0}, {"id": "b", "wall_time_s": 30.5}
    runs = [run("stage1", one), run("stage2", one), run("stage1", two), run("finetune", None)]
    got = report.cost(runs).set_index("stage")
    assert got.loc["teacher"].tolist() == [2, "0:02:00", "0:01:30"]
    assert got.loc["stage 1"].tolist() == [2, "0:02:00", "0:01:00"]
    two["wall_time_s"] = None
    assert report.cost(runs).set_index("stage").loc["teacher"].tolist() == [2, "unknown", "0:01:30"]
    assert "teacher" not in set(report.cost([run("finetune", None)])["stage"])


def test_what_is_planned_and_missing_is_refused(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    assert planned_tables("demo") == list(experiments.tables_of("demo"))
    plan("table5")
    assert planned_tables("demo") == ["table5"]
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):
        report.write("demo")
    assert not (paths.scale_dir("demo") / "report.html").exists()


def test_settings_that_differ():
    got = report.settings_that_differ("small")
    assert list(got.columns[2:]) == ["SCALE=paper", "AMiF, init=minilm", "AMiF, init=random"]
    found = got.set_index("setting")
    assert found.loc["model.image_size"].tolist()[:3] == ["stage 1, stage 2, fine-tuning", "288", "128"]
    assert "60" in got[got["setting"] == "train.epochs"].set_index("stage").loc["fine-tuning"].tolist()
    assert report.settings_that_differ("paper").empty


# --- stored runs ---


def test_load_run(demo):
    spec = Selection().rows("table4", "demo")[3].runs[0]
    for given in (spec, spec.run_id, spec.directory, str(spec.directory)):
        assert stored.load_run(given).run_id == spec.run_id
    run = stored.load_run(spec)
    assert run.spec == spec and run.metrics["train_time_s"] == 30 and len(run.history) == 10
    assert len(run.predictions) == 12 and len(run.candidates) == 7 and len(run.blank_test[0]) == 12
    with pytest.raises(InputError, match="not a run folder"):
        stored.load_run("0123456789ab")


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
    spec = Selection().rows("table4", "demo")[0].runs[0]
    path = write_run(spec, wrong_at()) / name
    path.unlink() if text is None else path.write_text(text, encoding="utf-8")
    run = stored.load_run(spec)
    with pytest.raises(InputError, match=message):
        _ = run.metrics if name == "metrics.json" else run.history
