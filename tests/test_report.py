"""The report page from made-up runs, and the stored runs behind it."""

from __future__ import annotations

import re
from html import unescape

import pandas as pd
import pytest

from amif_lib.app import jobs
from amif_lib.core import paths
from amif_lib.core.errors import InputError
from amif_lib.experiments import rows as experiments
from amif_lib.experiments import stored
from amif_lib.reporting import report
from amif_lib.reporting.table_rows import Selection, planned_tables, required_runs
from tests import fabricated
from tests.fabricated import write_run, write_table, wrong_at

SETS = ("phantom_vqa_rad", "phantom_slake")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Two tables over two question sets and five replicates of the contrasts' configurations on them."""
    with pytest.MonkeyPatch.context() as patch:
        fabricated.install(patch, tmp_path_factory.mktemp("a folder with spaces"), SETS)
        write_table("table1", "demo", {"demo": (5,)})
        write_table("table4", "demo", {"1": (0, 1, 3, 5, 6, 8), "3": (0, 1, 5, 8), "5": (0, 5), "6": (5,)})
        known = experiments.table_settings
        five = {"contrasts": {"replicates": {"demo": 5}}}
        patch.setattr(experiments, "table_settings", lambda name: known(name) | five.get(name, {}))
        for row in experiments.rows("contrasts", "demo"):
            for run in row.runs:
                wrong = {5, run.seed, *((0, 1, 3, 6) if row.row == "no_pretraining" else (8,))}
                write_run(run, wrong_at(*wrong), blank=wrong_at(*range(8)))
                for stage in run.trainings()[:-1]:
                    write_run(stage)
        fabricated.plan("table1", "table4")
        yield


@pytest.fixture(scope="module")
def path(demo):
    return report.write("demo")


@pytest.fixture(scope="module")
def page(path):
    return path.read_text(encoding="utf-8")


def test_page_needs_nothing_else_and_begins_with_the_result(page):
    assert not re.search(r"<(script|link|iframe)|src=\"(?!data:image/png;base64,)", page)
    text = " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())
    first = text[text.index("Reproduction report") :]
    said = ("of 12 comparisons over 5 replicates", "The full model answers", "shown another case's image")
    places = [first.find(part) for part in (*said, "synthetic demo data; not comparable with the paper")]
    assert -1 not in places and places == sorted(places)
    commit = stored.load_run(required_runs("table4", "demo")[0]).commit
    assert f"Runs of commit {commit[:12]}" in text
    said = ("question only (trained on blank images)", "nearest question on the same image", "strict@1")
    said += ("model.width", "768", "What the paper prints, on the real data sets", "detectable", "p after Holm")
    said += ("another case's image at test time only", "not by the paper's authors", "not for clinical use")
    assert [part for part in said if part not in text] == []
    parts = ["contrasts", "table1", "table4", "figures", "made", "conditions"]
    assert re.findall(r'<h2 id="(\w+)"', page) == parts and set(re.findall(r'href="#(\w+)"', page)) == set(parts)
    links = re.findall(r'href="([^"#]+)"', page)
    assert links and all((paths.scale_dir("demo") / link).exists() for link in links)


def test_a_teaching_run_says_so(demo, monkeypatch):
    monkeypatch.setattr(report, "planned_tables", lambda scale: ["table1"])
    collected = [report.tables.collect("table1", "demo", Selection(only=("demo",)))]
    said = report.result(collected)
    assert said[0].startswith("The full model answers") and "Teaching run" in said[-1]
    assert "comparisons" not in " ".join(said)


def test_a_second_report_changes_no_table_unless_it_was_edited_and_escapes_what_it_is_given(monkeypatch, path):
    monkeypatch.setattr(report.figure_set, "draw_all", lambda *_, **__: [])
    monkeypatch.setattr(report, "planned_tables", lambda scale: ["table4"])
    csv = paths.scale_dir("demo") / "tables" / "table4.csv"
    before = csv.stat().st_mtime_ns
    report.write("demo")
    assert csv.stat().st_mtime_ns == before
    csv.write_text("edited by hand", encoding="utf-8")
    rows = Selection.rows

    def with_markup(self, name, scale):
        return [row.model_copy(update={"label": "<script>alert(1)</script>"}) for row in rows(self, name, scale)]

    monkeypatch.setattr(Selection, "rows", with_markup)
    text = report.write("demo").read_text(encoding="utf-8")
    assert pd.read_csv(csv)["ours"].notna().all()
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_what_is_planned_and_missing_is_refused(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path)
    assert planned_tables("demo") == list(experiments.tables_of("demo"))
    fabricated.plan("table5")
    assert planned_tables("demo") == ["table5"]
    with pytest.raises(InputError, match="make reproduce SCALE=demo"):
        report.write("demo")
    assert not (paths.scale_dir("demo") / "report.html").exists()


def test_a_table_keeps_what_it_was_asked_for_whatever_is_planned_later(monkeypatch, tmp_path):
    fabricated.install(monkeypatch, tmp_path, SETS)

    def made(*names: str, **asked) -> list[str]:
        jobs.make_plan(jobs.Request("demo", names, **asked)).write()
        wanted = Selection(
            asked.get("question_sets", ()), ("1", "6") * ("rows" in asked), pretrain_seeds=asked.get("pretrain_seeds")
        )
        for name in names:
            write_table(name, "demo", {}, wanted)
        return planned_tables("demo")

    def cells(name: str) -> tuple[int, set[str], set[str]]:
        found = report.tables.collect(name, "demo")
        lines = [line for line in found.lines if line.entry]
        return len(lines[0].runs), {line.row for line in lines}, set(found.datasets)

    assert made("contrasts", pretrain_seeds=3)[0] == "contrasts"
    before = cells("contrasts")
    assert before[0] == 3
    assert made("table4", rows=("1", "6"), question_sets=SETS[:1]) == ["contrasts", "table4"]
    assert cells("contrasts") == before and cells("table4")[1:] == ({"1", "6"}, {SETS[0]})
    assert {"contrasts", "table4", "methods"} <= set(made("methods", pretrain_seeds=1))
    assert cells("contrasts") == before and cells("table4")[1:] == ({"1", "6"}, {SETS[0]})
    made("table4")
    assert cells("table4")[2] == set(SETS) and cells("contrasts") == before


def test_settings_that_differ():
    got = report.settings_that_differ("small")
    found = got.set_index("setting")
    assert found.loc["model.image_size"].tolist()[:3] == ["stage 1, stage 2, fine-tuning", "288", "160"]
    assert "60" in got[got["setting"] == "train.epochs"].set_index("stage").loc["fine-tuning"].tolist()
    assert report.settings_that_differ("paper").empty
